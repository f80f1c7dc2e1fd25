"""Memory of the process: fresh for large results, and given back when it is not used."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable

from torch import Tensor

MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # glibc's, of a user

# Of mallopt(3).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4

_KEPT_FOR_IMAGES = 2**27  # bytes: arrays of an image with ten million pixels
_LARGEST_THRESHOLD = 2**25  # bytes: what mallopt allows
_MAPPED_APART = 2**22  # bytes
_LARGE = 2**24  # bytes; below, fresh memory comes from what the C library has at hand


def empty_large(size: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor, on Linux in huge pages if it is large and on a CPU.

    A page of 4 KiB is handed out and cleared when it is first written to: for 200 MB, that takes longer than writing.

    Args:
        size: of the tensor.
        like: has the type and device.
    """
    tensor = like.new_empty(size)
    num_bytes = tensor.numel() * tensor.element_size()
    ask_for_huge_pages = _find_madvise()
    if tensor.device.type == "cpu" and num_bytes >= _LARGE and ask_for_huge_pages is not None:
        address = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        whole_pages = (tensor.data_ptr() + num_bytes - address) // mmap.PAGESIZE
        ask_for_huge_pages(address, whole_pages * mmap.PAGESIZE)
    return tensor


@functools.cache
def _find_madvise() -> Callable[[int, int], None] | None:
    """A function of address and length; None where the system has no huge pages to ask for."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return lambda address, length: madvise(address, length, advice)  # what it refuses stays as it was


def give_back_unused_memory() -> None:
    """Have the C library (glibc) give the system what was freed, also between what is in use."""
    trim = glibc_function("malloc_trim")
    if trim is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """Have the C library (glibc) keep all freed memory for later, as ``Accelerator.keep_freed_memory`` explains.

    Returns:
        Whether it was done: not by other libraries, nor where a variable of glibc's allocator is set.
    """
    return _set_options({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1})  # none mapped apart, none given back


def keep_memory_for_images() -> bool:
    """In a process that reads images, keep what one leaves for the next: up to 128 MB at the end of the heap.

    Arrays of a few megabytes would else go back to the system, and each page of the next ones would be cleared anew.

    Returns:
        See ``keep_freed_memory``.
    """
    return _set_options({_MMAP_THRESHOLD: _LARGEST_THRESHOLD, _TRIM_THRESHOLD: _KEPT_FOR_IMAGES})


def _set_options(options: dict[int, int]) -> bool:
    set_option = glibc_function("mallopt")
    if set_option is None or any(name in os.environ for name in MALLOC_VARIABLES):
        return False
    return all(set_option(option, value) == 1 for option, value in options.items())


def make_room_for_large_features() -> None:
    """Before a large image: give back what others left, and keep features from leaving gaps in the heap from now on.

    The C library (glibc) puts blocks of up to 32 MB into its heap once such a block was freed. From here on it maps
    those of 4 MB and more apart, which costs page faults and goes back at once: the second image of 2048 x 2731 then
    needs 0.1 GB less. MALLOC_MMAP_THRESHOLD_ and ``Accelerator.keep_freed_memory`` go before this.
    """
    give_back_unused_memory()
    set_option = glibc_function("mallopt")
    if set_option is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        set_option(_MMAP_THRESHOLD, _MAPPED_APART)


def glibc_function(name: str) -> Callable[..., int] | None:
    """A function of the C library's allocator; None where it is another than glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
