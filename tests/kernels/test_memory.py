"""Large results: in huge pages where the system gives them, and like any tensor otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
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


# In a process of its own: in this one, other tests may have had the C library keep small pages for later.
PROGRAM = """
import re, torch
from maskformer.kernels import empty_large
def kilobytes():
    return int(re.search(r"AnonHugePages:\\s+(\\d+) kB", open("/proc/self/smaps_rollup").read()).group(1))
before = kilobytes()
tensor = empty_large((2**26,), torch.zeros(1, dtype=torch.uint8)).fill_(1)
print(kilobytes() - before)
"""


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="the system has no huge pages")
def test_large_tensor_is_in_huge_pages():
    words = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=True)
    assert int(done.stdout) > 2**26 / 1024 / 2  # more than half: it may begin within one


AFTER_A_LARGE_IMAGE = """
import sys, torch
from maskformer.kernels import make_room_for_large_features
def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
torch.ones(2**22)  # once 16 MB were freed, glibc puts as large a block into its heap
if sys.argv[1] == "room":
    make_room_for_large_features()
blocks = [torch.ones(2**21) for _ in range(8)]
last = blocks.pop()  # lies behind the others
before = megabytes()
blocks.clear()
print(before - megabytes())
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="another C library")
@pytest.mark.parametrize(("room", "given_back"), [("room", True), ("as usual", False)])
def test_after_room_was_made_what_is_freed_goes_back(room: str, given_back: bool):
    words = [sys.executable, "-W", "ignore", "-c", AFTER_A_LARGE_IMAGE, room]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=True)
    assert (float(done.stdout) > 50) == given_back


BETWEEN_IMAGES = """
import sys
import numpy as np
from maskformer.data.loading.train_loader import TrainLoader
from maskformer.runs.signals import shield_workers
def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
loader = shield_workers(TrainLoader([{}], None, None, batch_size=1))
if sys.argv[1] != "as usual":
    loader.worker_init_fn(0)
arrays = [np.ones(2**20, np.uint8) for _ in range(40)]
before = megabytes()
arrays.clear()
print(before - megabytes())
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="another C library")
@pytest.mark.parametrize("choice", ["worker", "as usual", "the user chose"])
def test_worker_keeps_what_an_image_leaves_for_the_next(choice: str):
    words = [sys.executable, "-W", "ignore", "-c", BETWEEN_IMAGES, choice]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if choice == "the user chose":
        environment["MALLOC_TRIM_THRESHOLD_"] = "131072"
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200, check=True)
    assert (float(done.stdout) < 10) == (choice == "worker")
