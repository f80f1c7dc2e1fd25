"""Large results: in huge pages where the system gives them, and like any tensor otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from maskformer.kernels import empty_large

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_tensor_has_the_size_and_type_that_were_asked_for():
    for like in (torch.zeros(1, dtype=torch.float64), torch.zeros(1, device="meta")):
        for size in ((3, 2), (5, 1024, 1024), (0, 4)):
            tensor = empty_large(size, like)
            assert (tuple(tensor.shape), tensor.dtype, tensor.device) == (size, like.dtype, like.device)
    assert (empty_large((3, 2**23 + 1), torch.zeros(1)).fill_(3) == 3).all()


def count_huge_pages() -> int:
    """Kilobytes of this process's memory."""
    return int(re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text()).group(1))


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="the system has no huge pages")
def test_large_tensor_is_in_huge_pages():
    before = count_huge_pages()
    tensor = empty_large((2**26,), torch.zeros(1, dtype=torch.uint8)).fill_(1)
    assert count_huge_pages() - before > 2**26 / 1024 / 2, tensor.shape  # more than half, as it may begin within one
