"""The only file that knows devices: their names, vendor packages, memory, half precision and process groups.

Everything else says ``tensor.to(device)`` and asks an ``Accelerator`` for the rest. A device that this file has never
heard of works too, if its vendor registers it with PyTorch (PrivateUse1) and gives its module the functions that
``torch.cuda`` has; what such a module lacks is left out, not guessed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import distributed

from maskformer.structures import InputError


@dataclass(frozen=True)
class Vendor:
    """What PyTorch itself does not tell of a device type.

    Attributes:
        package: registers the device when it is imported; None: PyTorch has it.
        backend: name of its collective communication; None: PyTorch's own choice for the device.
        variables: how the environment variables begin that change what it does.
    """

    package: str | None = None
    backend: str | None = None
    variables: tuple[str, ...] = ()


# In the order in which "auto" tries them: vendor packages first, because some of them (torch_sdaa's cuda_migrate) make
# torch.cuda answer for their own device.
ACCELERATORS = {
    "sdaa": Vendor("torch_sdaa", "tccl", ("SDAA_", "TORCH_SDAA_")),
    "npu": Vendor("torch_npu", "hccl", ("ASCEND_", "NPU_", "HCCL_")),
    "cuda": Vendor(None, "nccl", ("CUDA_", "NCCL_", "PYTORCH_CUDA_")),
    "xpu": Vendor(None, "xccl", ("ZE_", "SYCL_", "CCL_")),
    "mps": Vendor(None, None, ("PYTORCH_MPS_",)),
}
COMMON_VARIABLES = ("OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "MALLOC_")  # beginnings, too

PROCESSES_PER_CORE = 4  # more would only wait for each other, and each takes memory

# SOLVER.AMP.PRECISION and MODEL.PRECISION; "auto" is the device's own choice.
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(name: str) -> str:
    """The PyTorch device for a name in MODEL.DEVICE.

    Args:
        name: "auto" (an available accelerator, else the CPU), "cpu", or an accelerator's type, which may carry an
            index, as in "cuda:1". Besides the types in ``ACCELERATORS``, any that is registered with PyTorch.

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
    try:
        is_known = device_type in ACCELERATORS or (
            torch.device(device_type).type == device_type and _module(device_type) is not None
        )
    except RuntimeError:
        is_known = False
    if not is_known or (":" in name and not index.isdigit()):
        valid = ", ".join(["auto", "cpu", *ACCELERATORS])
        raise InputError(
            f"MODEL.DEVICE is {name!r}, expected one of {valid}, or a device type that an imported package has "
            "registered with PyTorch (an accelerator may carry an index: cuda:1)."
        )
    count = device_count(device_type)
    if count == 0:
        package = ACCELERATORS.get(device_type, Vendor()).package
        is_missing = package is not None and importlib.util.find_spec(package) is None
        reason = f"its package {package} is not installed" if is_missing else "no such device is available"
        raise InputError(f"MODEL.DEVICE is {name!r}, but {reason}; set MODEL.DEVICE to auto or cpu.")
    if index and int(index) >= count:
        raise InputError(f"MODEL.DEVICE is {name!r}, but this machine has {count} such devices, counted from 0.")
    return name


def with_device(cfg: CfgNode) -> CfgNode:
    """A configuration whose MODEL.DEVICE is resolved: itself, or a copy where that changes it."""
    device = resolve_device(cfg.MODEL.DEVICE)
    if device == cfg.MODEL.DEVICE:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.freeze()
    return cfg


def device_count(device_type: str) -> int:
    """How many devices of a type this machine has; the CPU counts as one for each core.

    Args:
        device_type: "cpu", one of ``ACCELERATORS``, or another that is registered with PyTorch.
    """
    if device_type == "cpu":
        return os.cpu_count() or 1
    _import_vendor_package(device_type)
    count = getattr(_module(device_type), "device_count", None)
    return 0 if count is None else count()


@dataclass(frozen=True)
class Memory:
    """Memory of one process on a device, in bytes; on the CPU, all memory that the process holds."""

    in_use: int
    peak: int


class Accelerator:
    """A device with what PyTorch offers for it, under names that are the same for all devices.

    Args:
        device: what ``resolve_device`` gave.
    """

    def __init__(self, device: str):
        _import_vendor_package(device.partition(":")[0])  # this process may not have resolved the name itself
        self.device = torch.device(device)
        self.type = self.device.type
        self._module = _module(self.type)
        self._peak_seen = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """To be sent to another process, which has the modules of its own."""
        return type(self), (str(self.device),)

    def num_processes(self) -> int:
        """How many processes this machine bears: one a device, and some more than one a core of a CPU."""
        return device_count(self.type) * (PROCESSES_PER_CORE if self.type == "cpu" else 1)

    def select(self, local_rank: int = 0) -> None:
        """Make the device current in this process: the one that the name says, else that of the process's rank."""
        self._call("set_device", local_rank if self.device.index is None else self.device.index)

    def synchronize(self) -> None:
        """Wait until all work is done that was given to the device."""
        self._call("synchronize")

    def memory(self) -> Memory:
        """Memory in use now, and the most since ``reset_peak_memory``."""
        if self.type == "cpu":
            return _host_memory()
        in_use = (self._function("memory_allocated") or self._function("current_allocated_memory") or int)()
        # Where the device keeps no peak (mps), the most that was ever asked for stands in.
        self._peak_seen = max(self._peak_seen, in_use)
        return Memory(in_use, (self._function("max_memory_allocated") or (lambda: self._peak_seen))())

    def reset_peak_memory(self) -> None:
        """Start a new measurement of the peak. The CPU's is that of the process's whole life."""
        self._peak_seen = 0
        self._call("reset_peak_memory_stats")

    def release_unused_memory(self) -> None:
        """Give back what PyTorch keeps of the device's memory for later."""
        self._call("empty_cache")

    @property
    def reads_pinned_memory(self) -> bool:
        """Whether copies from pinned memory to the device are its own work, for which the host need not wait."""
        return self.type == "cuda"

    def random_states(self) -> dict[str, torch.Tensor | None]:
        """What the next random numbers of the host ("torch") and of the device ("device") follow from.

        The latter is None for a device that has none besides the host's, or does not tell.
        """
        of_device = self._call("get_rng_state")
        return {"torch": torch.get_rng_state(), "device": None if of_device is None else of_device.cpu()}

    def set_random_states(self, states: Mapping[str, Any]) -> None:
        """Go on from what ``random_states`` gave."""
        torch.set_rng_state(states["torch"])
        if states["device"] is not None:
            self._call("set_rng_state", states["device"])

    def half_precision(
        self, name: str = "auto", *, key: str = "SOLVER.AMP.PRECISION", off: str = "SOLVER.AMP.ENABLED to False"
    ) -> torch.dtype:
        """The type that ``autocast`` computes products in.

        Args:
            name: "float16", "bfloat16", or "auto": bfloat16 where the device has it, for it needs no loss scaling;
                else float16.
            key: of the configuration that says so, for the message.
            off: how products stay as they are, likewise.

        Raises:
            InputError: the device does not compute in that type.
        """
        if name == "auto":
            name = "bfloat16" if self._computes_in(torch.bfloat16) else "float16"
        if not self._computes_in(PRECISIONS[name]):
            others = [other for other, dtype in PRECISIONS.items() if self._computes_in(dtype)]
            change = f"it to {' or '.join([*others, 'auto'])}" if others else off
            raise InputError(f"{key} is {name!r}, which {self.type} does not compute in; set {change}.")
        return PRECISIONS[name]

    def autocast(self, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
        """Mixed precision in the ``with`` block; None: everything as it is."""
        if dtype is None:
            return contextlib.nullcontext()
        return _first_that_works(
            lambda: torch.autocast(self.type, dtype=dtype),
            lambda: self._module.amp.autocast(dtype=dtype),  # type: ignore[union-attr]
        )

    def gradient_scaler(self, dtype: torch.dtype | None) -> torch.amp.GradScaler:
        """A loss scaler for float16, whose small gradients would vanish; for other types one that does nothing."""
        enabled = dtype == torch.float16
        return _first_that_works(
            lambda: torch.amp.GradScaler(self.type, enabled=enabled),
            lambda: self._module.amp.GradScaler(enabled=enabled),  # type: ignore[union-attr]
        )

    def process_group_backend(self) -> str:
        """What ``torch.distributed.init_process_group`` takes: gloo for objects and CPU tensors, the device's own."""
        if self.type == "cpu":
            return "gloo"
        vendor = ACCELERATORS.get(self.type, Vendor())
        backend = vendor.backend or distributed.Backend.default_device_backend_map.get(self.type)
        if backend is None or not hasattr(distributed.Backend, backend.upper()):
            raise InputError(
                f"Processes on {self.type} cannot exchange gradients: PyTorch {torch.__version__} has no backend "
                f"{backend or 'for it'}; use one process (--num-gpus 1)."
            )
        return f"cpu:gloo,{self.type}:{backend}"

    def describe(self) -> dict[str, str]:
        """What a report on a run should say of the device: name, count, versions, environment variables."""
        vendor = ACCELERATORS.get(self.type, Vendor())
        name = (self._function("get_device_name") or _cpu_name)() or platform.machine()
        versions = {"Python": platform.python_version(), "PyTorch": torch.__version__}
        if vendor.package is not None:
            versions[vendor.package] = str(getattr(sys.modules.get(vendor.package), "__version__", "unknown"))
        lines = {"device": f"{self.device} ({name})", "devices here": str(device_count(self.type)), **versions}
        if self.type == "cuda":
            convolutions = "TF32" if torch.backends.cudnn.allow_tf32 else "float32"
            lines["float32 products"] = f"{torch.get_float32_matmul_precision()}, convolutions in {convolutions}"
        beginnings = COMMON_VARIABLES + vendor.variables
        return {**lines, **{name: os.environ[name] for name in sorted(os.environ) if name.startswith(beginnings)}}

    def _function(self, name: str) -> Callable[..., Any] | None:
        return getattr(self._module, name, None)

    def _call(self, name: str, *args: Any) -> Any:
        """What a function of the device's module gives; None where it has no such function, as the CPU."""
        function = self._function(name)
        return None if function is None else function(*args)

    def _computes_in(self, dtype: torch.dtype) -> bool:
        """Whether ``autocast`` takes a type: PyTorch's only warns of one that it does not, and leaves float32."""
        supported = self._function("get_amp_supported_dtype")
        if supported is not None and dtype not in supported():
            return False
        if dtype != torch.bfloat16 or self.type == "cpu":
            return True
        is_supported = self._function("is_bf16_supported")
        return supported is not None if is_supported is None else bool(is_supported())


def _module(device_type: str) -> ModuleType | None:
    """``torch.cuda``, ``torch.sdaa`` and so on; None for the CPU, whose module of that name is none of these."""
    return None if device_type == "cpu" else getattr(torch, device_type, None)


def _find_accelerator() -> str | None:
    for device_type in ACCELERATORS:
        _import_vendor_package(device_type)
    if hasattr(torch, "accelerator"):  # PyTorch 2.6 and newer
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator.type if accelerator else None
    return next((device_type for device_type in ACCELERATORS if device_count(device_type) > 0), None)


def _import_vendor_package(device_type: str) -> None:
    package = ACCELERATORS.get(device_type, Vendor()).package
    if package is None or importlib.util.find_spec(package) is None:
        return
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:  # a driver or its libraries, missing or of another version
        raise InputError(
            f"The package {package} of the device {device_type} is installed, but cannot be imported ({error}). Mend "
            "or uninstall it, or set MODEL.DEVICE to cpu."
        ) from error


def _first_that_works(generic: Callable[[], Any], vendor: Callable[[], Any]) -> Any:
    """PyTorch's spelling of mixed precision, or the vendor's where its release does not know that one yet."""
    try:
        return generic()
    except (RuntimeError, AttributeError, TypeError, AssertionError):
        return vendor()


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0] if names else platform.processor()


def _host_memory() -> Memory:
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = usage if sys.platform == "darwin" else usage * 1024
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:  # not Linux
        return Memory(peak, peak)
    return Memory(pages * resource.getpagesize(), peak)
