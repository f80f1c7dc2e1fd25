"""What makes a CPU fast: formulas as loops that Numba compiles, and threads that compute independent pieces.

availability (can the loops be used), loops (of losses and inference), compiling, interpolation,
threads, memory. Where Numba is missing, and for other types and devices, the callers compute the same with PyTorch's,
OpenCV's and Pillow's operators.
"""

from .availability import find_kernels, import_loops
from .interpolation import interpolation_matrix, plan_interpolation
from .memory import (
    MALLOC_VARIABLES,
    empty_large,
    give_back_unused_memory,
    keep_freed_memory,
    keep_memory_for_images,
    make_room_for_large_features,
)
from .threads import for_each

__all__ = [
    "MALLOC_VARIABLES",
    "empty_large",
    "find_kernels",
    "for_each",
    "give_back_unused_memory",
    "import_loops",
    "interpolation_matrix",
    "keep_freed_memory",
    "keep_memory_for_images",
    "make_room_for_large_features",
    "plan_interpolation",
]
