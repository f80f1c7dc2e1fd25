"""Loops over pixels that Numba compiles, for float32 on a CPU: availability (is it installed), loops (the formulas)."""

from .availability import find_kernels

__all__ = ["find_kernels"]
