"""What makes a CPU fast: formulas as loops that Numba compiles, and threads that compute independent pieces.

dispatch (whether loops can be used; threads), loops (of losses and inference), interpolation. Where Numba is missing,
and for other types and devices, the callers compute the same with PyTorch's operators.
"""

from .dispatch import best_classes, find_kernels, for_each, import_loops
from .interpolation import interpolation_matrix, plan_interpolation

__all__ = ["best_classes", "find_kernels", "for_each", "import_loops", "interpolation_matrix", "plan_interpolation"]
