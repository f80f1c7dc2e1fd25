"""Loss curves of trainings that never were, and the logs that they would have left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from maskformer.sdaa.curves import LossCurve, LossPairs
from maskformer.sdaa.tcappdll import TcappdllRecord, format_record


def make_losses(count: int = 200, *, seed: int = 0, batch_noise: float = 0.1) -> np.ndarray:
    """(count,) a loss that falls from 20 to 5; the seed is the order of the batches, which differ by the noise."""
    noise = np.random.default_rng(seed).standard_normal(count)
    losses = (5 + 15 * np.exp(-np.arange(count) / 50)) * (1 + batch_noise * noise)
    losses[0] = 20  # untrained weights give any batch about the same loss
    return losses


def add_device_noise(losses: np.ndarray, size: float = 0.005) -> np.ndarray:
    """(N,) -> (N,): what an honest other device makes of the same training."""
    return losses * (1 + size * np.random.default_rng(1000).standard_normal(len(losses)))


def pair_losses(sdaa: Sequence[float] | np.ndarray, cuda: Sequence[float] | np.ndarray) -> LossPairs:
    """Pairs at iterations 0, 1, 2, ..."""
    return LossPairs(np.arange(len(cuda)), np.array(sdaa, dtype=float), np.array(cuda, dtype=float))


def make_curve(
    losses: Sequence[float] | np.ndarray, iterations: Iterable[int] | None = None, span: int = 1
) -> LossCurve:
    """A curve as read from a log, at iterations 0, 1, 2, ... if none are given."""
    numbers = np.arange(len(losses)) if iterations is None else np.array(list(iterations))
    return LossCurve(Path("log"), numbers, np.array(losses, dtype=float), span)


def write_tcappdll(
    path: Path, losses: Iterable[float], *, iterations: Iterable[int] | None = None, rank: int = 0, epochs: int = 0
) -> Path:
    """Appends a TCAPPDLL line a loss, with a prefix as loggers write it, and a line of something else before them.

    Args:
        path: the log.
        losses: one an iteration.
        iterations: their numbers; 0, 1, 2, ... if none are given.
        rank: whose lines.
        epochs: number of the epoch of all lines.
    """
    numbers = range(10**6) if iterations is None else iterations
    start = datetime(2025, 7, 16, 4, 50, 44, 989637)
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        print("[07/16 04:50:40 d2.engine.train_loop]: Starting training from iteration 0", file=file)
        for loss, number in zip(losses, numbers):
            record = TcappdllRecord(
                epochs, number, rank, float(loss), 0.52, 3.84, start + timedelta(seconds=4 * number)
            )
            print(f"[07/16 04:50:44 maskformer]: {format_record(record)}", file=file)
    return path


def write_metrics(path: Path, losses: Sequence[float] | np.ndarray) -> Path:
    """What Detectron2 writes of raw losses: every 20 iterations and at the end the median of the last 20."""
    path.parent.mkdir(exist_ok=True)
    last = len(losses) - 1
    with path.open("w") as file:
        for iteration in [*range(19, last, 20), last]:
            loss = float(np.median(losses[max(0, iteration - 19) : iteration + 1]))
            print(json.dumps({"iteration": iteration, "lr": 1e-4, "total_loss": loss}), file=file)
        print(json.dumps({"iteration": last, "panoptic_seg/PQ": 40.0}), file=file)
    return path


def write_settings(folder: Path, *, seed: int = 7, batch: int = 2, iterations: int = 200) -> None:
    """A ``config.yaml`` as Detectron2 writes it, cut to what is looked at."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(
        f"DATASETS:\n  TRAIN:\n  - shapes_panoptic_train\nSEED: {seed}\n"
        f"SOLVER:\n  IMS_PER_BATCH: {batch}\n  MAX_ITER: {iterations}\n"
    )
