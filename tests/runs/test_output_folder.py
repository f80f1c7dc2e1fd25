from __future__ import annotations

import errno
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage

from maskformer.engine.hooks.writers import EventFileWriter, MetricsWriter
from maskformer.runs import output_folder
from maskformer.runs.output_folder import (
    KeptFile,
    keep_logging,
    lock_output_folder,
    restore_output_folder,
)
from maskformer.structures import InputError

HOLD = """
import sys
import time
from maskformer.runs.output_folder import lock_output_folder
lock_output_folder(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def full_disk(limit: int = 0) -> Iterator[None]:
    """No file of this process grows beyond the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_folder_is_refused_while_another_process_has_it(tmp_path: Path):
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(InputError, match=rf"OUTPUT_DIR is {tmp_path}.*process {holder.pid} on .*Wait for its end"):
            lock_output_folder(str(tmp_path))
    finally:
        holder.kill()
        holder.communicate()
    lock_output_folder(str(tmp_path))
    assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"OUTPUT_DIR .*file/run cannot be written to \(Not a directory\)"):
        lock_output_folder(str(tmp_path / "file" / "run"))


def test_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: int) -> None:  # stands in for a file system that is not here
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_folder.fcntl, "lockf", refuse)
    monkeypatch.setattr(output_folder.logger, "warning", logging.getLogger("no locks").warning)
    lock_output_folder(str(tmp_path))
    assert "has no locks" in caplog.text


def test_vanished_folder_is_made_again_and_locked(tmp_path: Path):
    folder = tmp_path / "run"
    lock_output_folder(str(folder))
    (folder / ".lock").unlink()
    folder.rmdir()
    restore_output_folder(str(folder))
    assert f"process {os.getpid()}" in (folder / ".lock").read_text()


def test_folder_that_was_not_locked_is_only_made_again(tmp_path: Path):
    restore_output_folder(str(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


def test_text_is_kept_while_the_disk_is_full(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = KeptFile(str(tmp_path / "log.txt"))
    for text, limit in (("one\n", 1000), ("two\n", 6), ("three\n", 6), ("four\n", 1000)):
        with full_disk(limit):
            file.write(text)
            file.flush()
        if limit == 6:
            assert (tmp_path / "log.txt").read_text() == "one\n"  # the half that was written is taken back
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree\nfour\n"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and "log.txt cannot be written (File too large)" in warnings[0]


def test_file_of_a_vanished_folder_is_made_again(tmp_path: Path):
    file = KeptFile(str(tmp_path / "run" / "log.txt"))
    file.write("one\n")
    file.flush()
    os.rename(tmp_path / "run", tmp_path / "moved")
    file.write("two\n")
    file.close()
    assert (tmp_path / "run" / "log.txt").read_text() == "two\n"


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output_folder, "KEPT_LINES", 2)
    file = KeptFile(str(tmp_path / "log.txt"))
    for text in ("one\n", "two\n", "three\n"):
        file.write(text)
    file.close()
    assert (tmp_path / "log.txt").read_text() == "two\nthree\n"


def test_log_handlers_of_a_file_outlive_it(tmp_path: Path):
    path = tmp_path / "run" / "log.txt"
    path.parent.mkdir()
    logger = logging.getLogger("kept log")
    logger.propagate = False
    with path.open("a") as stream:
        logger.addHandler(logging.StreamHandler(stream))
        keep_logging(str(path), ("kept log",))
    os.rename(path.parent, tmp_path / "moved")
    logger.warning("a line")
    assert path.read_text() == "a line\n"


def test_metrics_of_a_full_disk_are_written_later(tmp_path: Path):
    writer = MetricsWriter(str(tmp_path / "metrics.json"))
    with EventStorage(0) as storage:
        storage.put_scalar("loss", 1.0, smoothing_hint=False)
        with full_disk():
            writer.write()
        storage.step()
        storage.put_scalar("loss", 2.0, smoothing_hint=False)
        writer.write()
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines == [{"iteration": 0, "loss": 1.0}, {"iteration": 1, "loss": 2.0}]


def test_events_go_on_in_a_vanished_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "run"
    writer = EventFileWriter(str(folder))
    with EventStorage(0) as storage:
        storage.put_scalar("loss", 1.0)
        writer.write()
        os.rename(folder, tmp_path / "moved")
        folder.write_text("no folder")
        told = ""
        while "TensorBoard's file in" not in told:  # a thread of its own writes, whose errors are seen later
            storage.step()
            storage.put_scalar("loss", 2.0)
            writer.write()
            told += capsys.readouterr().err
            time.sleep(0.05)
        folder.unlink()
        storage.step()
        storage.put_scalar("loss", 3.0)
        writer.write()
    writer.close()
    assert [path.name[:19] for path in folder.iterdir()] == ["events.out.tfevents"]
