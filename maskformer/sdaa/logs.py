"""What is wrong with two logs before their losses are compared: losses that are not there, runs started differently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maskformer.structures import InputError

from .curves import LossCurve
from .verdict import StrictVerdict

SETTING_KEYS = ("SEED", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "DATASETS.TRAIN")


def check_logs(sdaa: LossCurve, cuda: LossCurve) -> Iterator[str]:
    """Yields what is wrong with the logs as they are: losses that are not finite, not there or there twice."""
    for name, curve in (("SDAA", sdaa), ("CUDA", cuda)):
        yield from _check_one_log(name, curve)
    ends = int(sdaa.iterations.max()), int(cuda.iterations.max())
    if ends[0] != ends[1]:
        yield f"different length: SDAA ends at iteration {ends[0]}, CUDA at {ends[1]}"


def _check_one_log(name: str, curve: LossCurve) -> Iterator[str]:
    wrong = ~np.isfinite(curve.losses)
    if wrong.any():
        first = curve.iterations[wrong][0]
        yield f"{name}: {wrong.sum()} of {len(wrong)} losses are NaN or infinite, the first at iteration {first}"
    iterations, counts = np.unique(curve.iterations, return_counts=True)
    if (counts > 1).any():
        twice = iterations[counts > 1]
        yield f"{name}: {len(twice)} iterations are there more than once, the first is {twice[0]} (a resumed run?)"
    distances = np.diff(iterations)
    if curve.span > 1 and len(distances) and distances[-1] < curve.step:
        distances = distances[:-1]  # Detectron2 also writes the last iteration
    gaps = np.flatnonzero(distances != curve.step)
    if len(gaps):
        start, end = iterations[gaps[0]], iterations[gaps[0] + 1]
        yield (
            f"{name}: {len(gaps)} gaps where iterations are missing, the first between {start} and {end} "
            f"(there is a loss every {curve.step})"
        )


def check_presence(sdaa: LossCurve, cuda: LossCurve) -> Iterator[str]:
    """Yields the iterations that only one of two aligned curves has, up to where the shorter one ends."""
    end = min(sdaa.iterations.max(), cuda.iterations.max())
    for name, one, other in (("SDAA", sdaa, cuda), ("CUDA", cuda, sdaa)):
        missing = np.setdiff1d(other.iterations[other.iterations <= end], one.iterations)
        if len(missing):
            yield f"{name}: {len(missing)} iterations of the other log are missing, the first is {missing[0]}"


def check_settings(sdaa: Path, cuda: Path) -> StrictVerdict:
    """Whether both runs were started alike, as far as the ``config.yaml`` that Detectron2 writes beside a log tells.

    Args:
        sdaa: the SDAA log.
        cuda: the CUDA log.

    Raises:
        InputError: a ``config.yaml`` holds something else than keys and values.
    """
    verdict = StrictVerdict()
    paths = sdaa.parent / "config.yaml", cuda.parent / "config.yaml"
    shared = paths[0].resolve() == paths[1].resolve()
    of_sdaa = _read_settings(paths[0], verdict)
    of_cuda = of_sdaa if shared else _read_settings(paths[1], verdict)
    if of_sdaa is None or of_cuda is None:
        return verdict
    if shared:
        verdict.unchecked.append(f"seed and settings: both logs are beside one {paths[0]}, which is of one run")
    for key in SETTING_KEYS:
        if of_sdaa[key] != of_cuda[key]:
            verdict.reasons.append(f"different {key}: {of_sdaa[key]} with SDAA, {of_cuda[key]} with CUDA")
    return verdict


def _read_settings(path: Path, verdict: StrictVerdict) -> dict[str, Any] | None:
    """The values of SETTING_KEYS, None without a file; a seed that says nothing goes into the verdict."""
    if not path.is_file():
        verdict.unchecked.append(f"seed and settings: there is no {path}")
        return None
    content = _read_yaml(path)
    settings = {key: _look_up(content, key) for key in SETTING_KEYS}
    if not isinstance(settings["SEED"], int) or settings["SEED"] < 0:
        verdict.reasons.append(f"SEED is not set in {path}, so the two runs cannot be compared")
    return settings


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not the plain YAML that Detectron2 writes beside a log: {reason}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no keys and values; expected what Detectron2 writes beside a log.")
    return content


def _look_up(content: Any, key: str) -> Any:
    for name in key.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content
