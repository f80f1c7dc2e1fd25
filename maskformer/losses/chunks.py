"""How many pixels the losses look at together."""

from __future__ import annotations

import torch

# A handful of float32 temporaries of this size fit the second cache of a core. Half as large, waiting for the other
# threads at the end of each operator costs more than the operator; larger ones than 32 MB would go back to the system
# after each use (glibc), and fault in again. docs/performance.md has the times.
PER_CPU_THREAD = 1 << 16
# Elsewhere each operator costs a launch: few large ones win, until the device is slower with them than the host is.
ELSEWHERE = 1 << 24


def elements_at_once(device: torch.device) -> int:
    """Values of one temporary."""
    return PER_CPU_THREAD * torch.get_num_threads() if device.type == "cpu" else ELSEWHERE
