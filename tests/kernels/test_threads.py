from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from maskformer.kernels.dispatch import for_each

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_items", [0, 1, 2, 3, 50])
def test_every_item_is_worked_on_once_without_gradients(num_threads: int, num_items: int) -> None:
    weight, squares = torch.ones(1, requires_grad=True), torch.zeros(num_items)
    notes: list[tuple[bool, int]] = []

    def work(item: int) -> None:
        squares[item] += item**2
        notes.append(((weight * 2).requires_grad, torch.get_num_threads()))

    for_each(work, range(num_items), CPU)
    assert squares.tolist() == [item**2 for item in range(num_items)]
    alone = num_threads > 1 and num_items >= num_threads
    assert notes == [(False, 1 if alone else num_threads)] * num_items
    assert torch.get_num_threads() == num_threads and torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [False, True])
def test_pieces_are_worked_on_in_inference_mode_if_the_caller_is(num_threads: int, mode: bool) -> None:
    notes: list[bool] = []
    with torch.inference_mode(mode):
        for_each(lambda _: notes.append(torch.is_inference_mode_enabled()), range(8), CPU)
    assert notes == [mode] * 8


def test_items_are_worked_on_at_once(num_threads: int) -> None:
    together = threading.Barrier(num_threads, timeout=20)
    for_each(lambda _: together.wait() and None, range(num_threads * 2), CPU)


def test_what_a_piece_raises_is_raised(num_threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        for_each(lambda item: 1 // item and None, [2, 1, 0], CPU)


def test_forked_process_has_threads_of_its_own(num_threads: int) -> None:
    for_each(lambda _: None, range(8), CPU)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        for_each(done.append, range(8), CPU)
        os._exit(0 if sorted(done) == list(range(8)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_new_threads_of_others_begin_with_all_threads(num_threads: int) -> None:
    for_each(lambda _: None, range(8), CPU)
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [num_threads]
