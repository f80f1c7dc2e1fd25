"""What becomes ``torch.sdaa``: the functions of ``torch.cuda`` that the vendor's package mirrors."""

from __future__ import annotations

import torch

from torch_sdaa.build import load_backend


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return load_backend().device_count()


def current_device() -> int:
    return load_backend().current_device()


def set_device(device) -> None:
    index = device if isinstance(device, int) else torch.device(device).index
    load_backend().set_device(index or 0)


def synchronize(device=None) -> None:
    """All work is done when a call returns."""


def get_device_name(device=None) -> str:
    return "emulated SDAA"


def memory_allocated(device=None) -> int:
    return load_backend().memory_allocated()


def max_memory_allocated(device=None) -> int:
    return load_backend().max_memory_allocated()


def reset_peak_memory_stats(device=None) -> None:
    load_backend().reset_peak_memory_stats()


def empty_cache() -> None:
    """Nothing is cached."""


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16]  # the matrix unit has no bfloat16


def is_bf16_supported() -> bool:
    return False


def is_current_stream_capturing() -> bool:
    return False


def manual_seed(seed: int) -> None:
    """Random numbers come from the CPU's generator, which ``torch.manual_seed`` has seeded."""


def manual_seed_all(seed: int) -> None:
    """See ``manual_seed``."""


def get_rng_state(device=None) -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device=None) -> None:
    torch.set_rng_state(state)


def _is_in_bad_fork() -> bool:
    return False


def _lazy_init() -> None:
    """Nothing to start."""


class device:
    """Makes a device the current one inside a ``with``."""

    def __init__(self, device):
        self.index = device if isinstance(device, int) else torch.device(device).index

    def __enter__(self):
        self.previous = current_device()
        set_device(self.index)

    def __exit__(self, *_):
        set_device(self.previous)
