"""What makes a CPU fast: formulas as loops that Numba compiles, and threads that compute independent pieces.

availability (can the loops be used), loops (the formulas), compiling, interpolation, threads, memory. Where Numba is
missing, and for other types and devices, the callers compute the same with PyTorch's operators.
"""

from .availability import find_kernels, import_loops
from .interpolation import interpolation_matrix, plan_interpolation
from .memory import empty_large, give_back_unused_memory, glibc_function, make_room_for_large_features
from .threads import for_each

__all__ = [
    "empty_large",
    "find_kernels",
    "for_each",
    "give_back_unused_memory",
    "glibc_function",
    "import_loops",
    "interpolation_matrix",
    "make_room_for_large_features",
    "plan_interpolation",
]
