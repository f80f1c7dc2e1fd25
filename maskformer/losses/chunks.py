"""How many pixels the losses look at together."""

from __future__ import annotations

import torch

# A handful of float32 temporaries of this size fit the second cache of a core. Half as large, waiting for the other
# threads at the end of each operator costs more than the operator; larger ones than 32 MB would go back to the system
# after each use (glibc), and fault in again. docs/performance.md has the times.
PER_CPU_THREAD = 1 << 16
# Compiled loops have no temporaries, but what they write for products of matrices, which like more rows than a few.
WITH_KERNELS = 1 << 20
# Elsewhere each operator costs a launch: few large ones win, until the device is slower with them than the host is.
ELSEWHERE = 1 << 24


def elements_at_once(device: torch.device, pieces: int = 1) -> int:
    """Values of one temporary.

    Args:
        device: where it is.
        pieces: of the whole work; enough of them have a thread each (see ``kernels.threads``), fewer share all threads.
    """
    if device.type != "cpu":
        return ELSEWHERE
    num_threads = torch.get_num_threads()
    return PER_CPU_THREAD if pieces >= num_threads else PER_CPU_THREAD * num_threads
