"""What makes a CPU fast: formulas as loops that Numba compiles, and threads that compute independent pieces.

availability (can the loops be used), loops (of losses and inference), compiling, interpolation, threads. Where Numba is
missing, and for other types and devices, the callers compute the same with PyTorch's operators.
"""

from .availability import find_kernels, import_loops
from .interpolation import interpolation_matrix, plan_interpolation
from .threads import for_each

__all__ = ["find_kernels", "for_each", "import_loops", "interpolation_matrix", "plan_interpolation"]
