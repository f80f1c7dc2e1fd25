"""Writers of metrics, which a full disk or a lost folder does not end a training by."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage

from maskformer.files import json_text
from maskformer.runs.output_folder import KeptFile, tell
from maskformer.sdaa.tcappdll import TcappdllRecord, format_record, parse_line

logger = logging.getLogger(__name__)

WINDOW = 20  # values of which the median is written, as Detectron2's writers


def values_after(last_iteration: int) -> list[tuple[int, dict[str, float]]]:
    """The latest value of each metric that is newer than an iteration, medians where they are noisy; by iteration."""
    values: dict[int, dict[str, float]] = {}
    for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
        if iteration > last_iteration:
            values.setdefault(iteration, {})[name] = value
    return sorted(values.items())


class PictureWriter(EventWriter):
    """A writer that takes pictures too."""

    def write_pictures(self, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures of the current iteration: (height,width,3) uint8 RGB, by name."""
        raise NotImplementedError


class ResumableWriter(EventWriter):
    """Appends lines to a file, which outlives a disk that refuses, and which a resumed run goes on with.

    Args:
        path: of the file.
        durable: flush to the disk each time, not only to the system.
    """

    def __init__(self, path: str, *, durable: bool = False):
        self._path = path
        self._file = KeptFile(path, durable=durable)
        self._last_iteration = -1

    def close(self) -> None:
        """Write what the disk has refused so far, if it can be."""
        self._file.flush()

    def is_replayed(self, line: str) -> bool:
        """Whether a resumed run writes such a line again; others (of an evaluation in between) stay."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What has been written so far."""
        size = os.path.getsize(self._path) if os.path.exists(self._path) else 0
        return {"size": size, "last_iteration": self._last_iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: drop later lines that are written again, and those that were cut short."""
        self._last_iteration = state.get("last_write", state.get("last_iteration", -1))  # its earlier name
        if not os.path.isfile(self._path):
            return
        with open(self._path, "r+b") as file:
            file.seek(state["size"])
            lines = file.read().decode("utf-8", errors="replace").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and not self.is_replayed(line)]
            if len(kept) == len(lines):
                return
            file.seek(state["size"])
            file.write("".join(kept).encode("utf-8"))
            file.truncate()
        dropped = len(lines) - len(kept)
        logger.info("%s: %d lines are dropped; the resumed run writes them again.", self._path, dropped)


class MetricsWriter(ResumableWriter):
    """Detectron2's ``metrics.json``: one line an iteration, with what is new in it.

    Args:
        path: of the file, which is appended to.
    """

    def __init__(self, path: str):
        super().__init__(path, durable=True)

    def write(self) -> None:
        """Write the latest value of each metric, medians where they are noisy, unless it was written; NaN is null."""
        for iteration, values in values_after(self._last_iteration):
            self._file.write(json_text(dict(sorted({**values, "iteration": iteration}.items()))) + "\n")
            self._last_iteration = iteration
        self._file.flush()

    def is_replayed(self, line: str) -> bool:
        """Whether it is of an iteration; an evaluation outside a training has none."""
        try:
            return "iteration" in json.loads(line)
        except (ValueError, TypeError):
            return True  # cut short by a crash


class EventFileWriter(PictureWriter):
    """Detectron2's writer for TensorBoard; after an error it goes on in a new file, without what was being written.

    Args:
        folder: of the run; made again if it has vanished.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._inner = TensorboardXWriter(folder)
        self._is_failing = False

    def write(self) -> None:
        """Write what is new, if the file system lets it."""
        try:
            self._inner.write()
        except Exception as error:  # what its thread raised: an OSError, or one of TensorFlow's where it is installed
            self.close()
            self._inner = TensorboardXWriter(self._folder)
            if not self._is_failing:
                tell(f"TensorBoard's file in {self._folder} cannot be written ({error}); going on, and trying again.")
            self._is_failing = True
        else:
            self._is_failing = False

    def write_pictures(self, pictures: Mapping[str, np.ndarray]) -> None:
        """Hand pictures to the storage, from which they are written with the next metrics."""
        for name, picture in pictures.items():
            get_event_storage().put_image(name, picture.transpose(2, 0, 1))

    def close(self) -> None:
        """Close the file, as far as it can be."""
        with contextlib.suppress(Exception):
            self._inner.close()


class TcappdllWriter(ResumableWriter):
    """Writes the line of Tecorigin's tcap_dllogger for each iteration, to the standard output and to ``tcappdll.log``.

    Training goes by iterations, so the epoch is always 0.

    Args:
        folder: of the run; the file in it is appended to.
        images_per_step: over all processes.
    """

    def __init__(self, folder: str, *, images_per_step: int):
        super().__init__(os.path.join(folder, "tcappdll.log"))
        self._images_per_step = images_per_step

    def write(self) -> None:
        """Write the latest iteration, unless it has been written."""
        latest = get_event_storage().latest()
        if "total_loss" not in latest or "images_per_second" not in latest:
            return
        loss, iteration = latest["total_loss"]
        if iteration <= self._last_iteration:  # Detectron2 writes the last iteration twice
            return
        self._last_iteration = iteration
        images_per_second, _ = latest["images_per_second"]
        record = TcappdllRecord(
            epoch=0,
            iteration=iteration,
            rank=comm.get_rank(),
            loss=loss,
            images_per_second=images_per_second,
            total_time=self._images_per_step / images_per_second,
            time=datetime.now(),
        )
        line = format_record(record) + "\n"
        self._file.write(line)
        self._file.flush()
        with contextlib.suppress(OSError):  # the log may go to a disk that is full
            sys.stdout.write(line)
            sys.stdout.flush()

    def is_replayed(self, line: str) -> bool:
        """Whether it is such a line at all."""
        return parse_line(line) is not None
