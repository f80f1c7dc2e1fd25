"""Peak memory of a piece of work above what was in use before it."""

from __future__ import annotations

import gc
import re
from pathlib import Path

from maskformer.engine.accelerator import Accelerator

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): "reset the peak resident set size"


class PeakMemory:
    """Peaks above the memory that was in use when this was made, such as that of a loaded model.

    Args:
        accelerator: whose memory counts; that of the CPU is what this process holds.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._is_host = accelerator.type == "cpu"
        gc.collect()
        accelerator.release_unused_memory()
        self._base = accelerator.memory().in_use

    def start(self) -> None:
        """Begin a new measurement; where the system cannot, the peak is that of the process's life."""
        if not self._is_host:
            self._accelerator.reset_peak_memory()
        elif _CLEAR_REFS.exists():
            _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")

    def above_base(self) -> int:
        """Bytes, since ``start``."""
        peak = read_high_water_mark() if self._is_host else None
        return max((self._accelerator.memory().peak if peak is None else peak) - self._base, 0)


def read_high_water_mark() -> int | None:
    """The largest resident set of this process since its last reset, in bytes; None where there is no such file."""
    if not _STATUS.exists():
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024
