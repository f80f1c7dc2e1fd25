"""How loops are compiled, and kept for later runs."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)


class Compiled:
    """A function that Numba compiles when it is first called, for the types that it is called with.

    What comes out is kept on disk, beside the source or in the user's cache folder. Where it can be neither written nor
    read the function is compiled in each run. While it runs, other threads do too: it does not hold Python's lock.

    Args:
        function: of arrays and numbers.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        try:
            self._run = _compile(function, cache=True)
        except RuntimeError as error:  # there is no folder to write to
            self._keep_nothing(error)

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        try:
            return self._run(*arguments)
        except (OSError, EOFError, pickle.UnpicklingError) as error:  # of a full disk, or what one left behind
            self._keep_nothing(error)
            return self._run(*arguments)

    def _keep_nothing(self, error: Exception) -> None:
        logger.warning("%s is compiled in each run, some seconds: %s", self._function.__name__, error)
        self._run = _compile(self._function, cache=False)


def _compile(function: Callable[..., Any], *, cache: bool) -> Any:
    # "contract" fuses products with sums and changes nothing else: sums keep their order, NaN stays NaN.
    return njit(nogil=True, error_model="numpy", fastmath={"contract"}, cache=cache)(function)
