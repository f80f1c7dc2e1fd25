"""The only file that knows device modules: it turns the name in MODEL.DEVICE into a device that is there."""

from __future__ import annotations

import importlib
import importlib.util

import torch

from maskformer.structures import InputError

# Device type -> the package that registers it; None: PyTorch has it. In the order in which "auto" tries them: vendor
# packages first, because some of them (torch_sdaa's cuda_migrate) make torch.cuda answer for their own device.
ACCELERATORS = {"sdaa": "torch_sdaa", "npu": "torch_npu", "cuda": None, "xpu": None, "mps": None}


def resolve_device(name: str) -> str:
    """The PyTorch device for a name in MODEL.DEVICE.

    Args:
        name: "auto" (an available accelerator, else the CPU), "cpu", or an accelerator's type, which may carry an
            index, as in "cuda:1".

    Returns:
        A name that ``torch.device`` takes and that is available.

    Raises:
        InputError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return _find_accelerator() or "cpu"
    if name == "cpu":
        return name
    device_type, _, index = name.partition(":")
    if device_type not in ACCELERATORS or (":" in name and not index.isdigit()):
        valid = ", ".join(["auto", "cpu", *ACCELERATORS])
        raise InputError(
            f"MODEL.DEVICE is {name!r}, expected one of {valid} (an accelerator may carry an index: cuda:1)."
        )
    count = device_count(device_type)
    if count == 0:
        raise InputError(
            f"MODEL.DEVICE is {name!r}, but {_what_is_missing(device_type)}; set MODEL.DEVICE to auto or cpu."
        )
    if index and int(index) >= count:
        raise InputError(f"MODEL.DEVICE is {name!r}, but this machine has {count} such devices, counted from 0.")
    return name


def device_count(device_type: str) -> int:
    """How many devices of a type in ``ACCELERATORS`` this machine has."""
    _import_vendor_package(device_type)
    module = getattr(torch, device_type, None)
    return 0 if module is None else module.device_count()


def _find_accelerator() -> str | None:
    for device_type in ACCELERATORS:
        _import_vendor_package(device_type)
    if hasattr(torch, "accelerator"):  # PyTorch 2.6 and newer
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator.type if accelerator else None
    return next((device_type for device_type in ACCELERATORS if device_count(device_type) > 0), None)


def _import_vendor_package(device_type: str) -> None:
    package = ACCELERATORS[device_type]
    if package is not None and importlib.util.find_spec(package) is not None:
        importlib.import_module(package)


def _what_is_missing(device_type: str) -> str:
    package = ACCELERATORS[device_type]
    if package is not None and importlib.util.find_spec(package) is None:
        return f"its package {package} is not installed"
    if not hasattr(torch, device_type):
        return f"this PyTorch ({torch.__version__}) does not know it"
    return "no such device is available"
