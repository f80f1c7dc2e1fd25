"""Compiles backend.cpp once for each PyTorch and source text, under build/ of the repository, and loads it."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("backend.cpp")
BUILDS = Path(__file__).resolve().parents[3] / "build" / "sdaa_emulation"


def build_folder() -> Path:
    """Where the compiled backend of this PyTorch and this source lies."""
    text = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    return BUILDS / f"torch{torch.__version__}-{sys.implementation.cache_tag}-{text}"


@functools.cache
def load_backend():
    """The compiled module; several processes may ask for it at once."""
    folder = build_folder()
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # pip's ninja is there
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "in_use", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the process ends, however it ends
        (folder / "lock").unlink(missing_ok=True)  # PyTorch's own lock, which outlives a killed build
        return cpp_extension.load(
            "sdaa_emulation",
            [str(SOURCE)],
            build_directory=str(folder),
            extra_cflags=["-O1", "-g0", "-Wno-deprecated"],
        )
