"""Processes that watch each other: when one is lost, the others do not wait for it.

Each process keeps a connection to rank 0. The operating system closes the connections of a process that ends in
whatever way, and looks itself after those to a machine that is gone; so nothing has to be sent, and a process that is
only slow is never taken for lost.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time

from detectron2.utils import comm

from .failures import EXIT_RUN_ERROR

logger = logging.getLogger(__name__)

GRACE = 5.0  # seconds that a process has to end by itself, with its own sentence, after another was lost
LAUNCHER_GRACE = 60.0  # likewise after the process that started it: it may be saving
POLL = 1.0  # seconds between looks at the launcher
CONNECT = 20.0  # seconds to reach rank 0
# A machine that is silent for so long is gone: 10 s until the kernel asks, then 4 questions 5 s apart.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_END = b"end"
_TOKEN_BYTES = 16


class Watch:
    """Ends this process some seconds after another of its group, or the one that started it, has ended.

    Args:
        host: where rank 0 can be reached; None: by the name of its machine.
    """

    def __init__(self, host: str | None):
        self._parent = os.getppid()
        self._ending = threading.Event()
        self._peers: dict[socket.socket, str] = {}
        try:
            self._connect(host)
        except OSError as error:
            logger.warning(
                "Processes cannot watch each other (%s): if one is lost, others may wait %s for it", error, "30 minutes"
            )
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def close(self) -> None:
        """Leave the group: this process ends as it should, and so may the others."""
        self._ending.set()
        for peer in self._peers:
            try:
                peer.sendall(_END)
            except OSError:
                logger.debug("Another process has left first")

    def _forget(self) -> None:
        """In a data worker: its copies would keep the connections of this process open when this process ends."""
        for peer in self._peers:
            peer.close()

    def _connect(self, host: str | None) -> None:
        listener = _listen() if comm.is_main_process() else None
        token = secrets.token_bytes(_TOKEN_BYTES)
        offer = (socket.gethostname(), listener.getsockname()[1], token) if listener is not None else None
        name, port, token = comm.all_gather(offer)[0]
        if listener is None:
            peer = socket.create_connection((host or name, port), timeout=CONNECT)
            peer.sendall(token + comm.get_rank().to_bytes(4, "big"))
            self._add(peer, "rank 0")
            return
        with listener:
            listener.settimeout(CONNECT)
            while len(self._peers) < comm.get_world_size() - 1:
                self._accept(listener.accept()[0], token)

    def _accept(self, peer: socket.socket, token: bytes) -> None:
        """Take up a process that knows the token; whoever else connects is sent away."""
        peer.settimeout(CONNECT)
        greeting = peer.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
        if hmac.compare_digest(greeting[:_TOKEN_BYTES], token):
            self._add(peer, f"rank {int.from_bytes(greeting[_TOKEN_BYTES:], 'big')}")
        else:
            peer.close()

    def _add(self, peer: socket.socket, name: str) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):  # macOS has other names
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._peers[peer] = name

    def _look(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer, selectors.EVENT_READ)
            while selector.get_map() and not self._ending.is_set():
                ready = {key.fd for key, _ in selector.select(POLL)}
                for peer in [peer for peer in self._peers if peer.fileno() in ready]:
                    if not _has_said_goodbye(peer):
                        self._end_after(GRACE, f"{self._peers[peer]} was lost")
                    selector.unregister(peer)
                if os.getppid() != self._parent:
                    self._end_after(LAUNCHER_GRACE, "the process that started it was lost")

    def _end_after(self, seconds: float, reason: str) -> None:
        """Let the main thread end with what it knows, but not wait for a lost process for ever."""
        logger.error("This process ends within %.0f seconds: %s", seconds, reason)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._ending.wait(0.1):
                return
        sys.stderr.write(f"error: {reason}, so rank {comm.get_rank()} stops. Go on with --resume.\n")
        sys.stderr.flush()
        os._exit(EXIT_RUN_ERROR)  # the main thread may wait in a library for the lost process, where nothing reaches it


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _has_said_goodbye(peer: socket.socket) -> bool:
    try:
        return peer.recv(len(_END), socket.MSG_WAITALL) == _END
    except OSError:
        return False
