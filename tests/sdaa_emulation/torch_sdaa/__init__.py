"""Stand-in for Tecorigin's ``torch_sdaa``, which is not on PyPI: the same names on an emulated device.

Importing it registers the device "sdaa" and the process group "tccl" with PyTorch, as the vendor's package does. The
device itself is in backend.cpp: a real PrivateUse1 device that lives in CPU memory. It refuses what the real card does:
views of non-contiguous tensors, histograms, and dynamic shapes under ``torch.compile``. Environment variables:

    SDAA_EMULATED_DEVICES   how many devices there are (default 4, as on one card)
    SDAA_EMULATED_FORBID    further operators that fail, separated by commas, such as aten::bincount
    SDAA_EMULATED_COUNTS    a file: at exit, the number of calls of each operator is appended to it as one JSON line
"""

from __future__ import annotations

import atexit
import json
import os

import torch
import torch.distributed

from torch_sdaa import sdaa
from torch_sdaa.build import load_backend

__version__ = "0.0.0+emulated"
REFUSED = ("aten::histc", "aten::histc.out")
_compile = torch.compile


def _create_tccl(store, rank, size, timeout):
    return load_backend().wrap_gloo(torch.distributed.ProcessGroupGloo(store, rank, size, timeout))


def _compile_static_shapes(model=None, *, dynamic=None, **options):
    if dynamic:
        raise NotImplementedError("dynamic shapes under torch.compile are not supported on the device sdaa")
    return _compile(model, dynamic=False, **options)


def _append_counts(path: str) -> None:
    line = {"rank": os.environ.get("RANK"), "operators": load_backend().operator_counts()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _register() -> None:
    torch.utils.rename_privateuse1_backend("sdaa")
    torch._register_device_module("sdaa", sdaa)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.distributed.Backend.register_backend("tccl", _create_tccl, devices=["sdaa"])
    load_backend().forbid({*REFUSED, *filter(None, os.environ.get("SDAA_EMULATED_FORBID", "").split(","))})
    torch.compile = _compile_static_shapes
    if "SDAA_EMULATED_COUNTS" in os.environ:
        atexit.register(_append_counts, os.environ["SDAA_EMULATED_COUNTS"])


_register()
