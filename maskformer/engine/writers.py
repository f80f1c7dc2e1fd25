"""Event writers beside Detectron2's."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import datetime

from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from maskformer.engine.output_folder import KeptFile
from maskformer.engine.tcappdll import TcappdllRecord, format_record


class TcappdllWriter(EventWriter):
    """Writes the line of Tecorigin's tcap_dllogger for each iteration, to the standard output and to ``tcappdll.log``.

    Training goes by iterations, so the epoch is always 0.

    Args:
        folder: of the run; the file in it is appended to.
        images_per_step: over all processes.
    """

    def __init__(self, folder: str, *, images_per_step: int):
        self._images_per_step = images_per_step
        self._last_iteration = -1
        self._file = KeptFile(os.path.join(folder, "tcappdll.log"))

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

    def close(self) -> None:
        """Close the file."""
        self._file.close()
