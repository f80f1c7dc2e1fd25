"""What a report says of the machine and of the software that it was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from maskformer.engine.accelerator import Accelerator

_PACKAGES = ("torch", "torchvision", "transformers", "detectron2", "numpy", "scipy")
_REPOSITORY = Path(__file__).resolve().parents[1]


def describe_machine(device: str) -> dict[str, str]:
    """Date, commit, processor, device and versions.

    Args:
        device: what ``resolve_device`` gave.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": read_commit(),
        "processor": read_processor(),
        "cores": str(_count_cores()),
        "system": platform.platform(),
        **Accelerator(device).describe(),
        **{package: read_version(package) for package in _PACKAGES},
    }


def read_commit() -> str:
    """The commit of the repository, with "+" where files differ from it; "unknown" outside one."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    command = ["git", "-C", str(_REPOSITORY), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def read_processor() -> str:
    """The processor's name and, where the system gives the number, its model."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    text = path.read_text(encoding="utf-8")
    found = {key: re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE) for key in ("model name", "model", "flags")}
    name, model, flags = (match[1].strip() if match else "" for match in found.values())
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()]
    details = ", ".join(filter(None, [f"model {model}" if model else "", " ".join(wide)]))
    return f"{name or platform.machine()} ({details})"


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_version(package: str) -> str:
    """Of an installed package; "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
