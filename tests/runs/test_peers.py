"""What one process concludes of another; tests/faults kills real ones."""

from __future__ import annotations

import socket

import pytest

from maskformer.runs.peers import Watch, _has_said_goodbye


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_goodbye_is_told_from_a_loss(pair: tuple[socket.socket, socket.socket]):
    pair[0].sendall(b"end")
    assert _has_said_goodbye(pair[1])
    pair[0].close()
    assert not _has_said_goodbye(pair[1])


@pytest.mark.parametrize(("token", "expected"), [(b"t" * 16, ["rank 3"]), (b"x" * 16, []), (b"", [])])
def test_only_who_knows_the_token_is_taken_up(token: bytes, expected: list[str]):
    watch = Watch(None)  # of one process, which has no others
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        client.sendall(token + (3).to_bytes(4, "big"))
        client.shutdown(socket.SHUT_WR)
        watch._accept(server.accept()[0], b"t" * 16)
    assert list(watch._peers.values()) == expected
    client.close()
    watch.close()
