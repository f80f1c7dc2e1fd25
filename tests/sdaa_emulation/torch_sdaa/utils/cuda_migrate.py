"""Importing it makes ``torch.cuda`` answer for sdaa, as the vendor's module of this name does."""

from __future__ import annotations

import torch

from torch_sdaa import sdaa

for _name in (
    "is_available",
    "device_count",
    "current_device",
    "set_device",
    "synchronize",
    "get_device_name",
    "memory_allocated",
    "max_memory_allocated",
    "reset_peak_memory_stats",
    "empty_cache",
    "is_bf16_supported",
    "is_current_stream_capturing",
):
    setattr(torch.cuda, _name, getattr(sdaa, _name))
