from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest
from detectron2.utils import comm

from maskformer.evaluation import Journal, tidy_partial_results
from maskformer.evaluation.journal import FORGOTTEN_AFTER
from maskformer.structures import InputError


def journal(folder: Path, fingerprint: str = "a", *, resume: bool = True) -> Journal:
    return Journal(str(folder), fingerprint, resume=resume)


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*/*.lines")
    return path


def left_behind(folder: Path, *indices: int) -> None:
    """A process wrote some images and was killed."""
    written = journal(folder)
    for index in indices:
        written.append(index, b"[%d]" % index)


def test_what_was_appended_is_read_by_the_next_process(tmp_path: Path):
    left_behind(tmp_path, 3, 1)
    second = journal(tmp_path)
    second.append(0, b'{"x":1}')
    assert second.done == {3, 1}  # before it began
    assert dict(second.lines()) == {3: b"[3]", 1: b"[1]", 0: b'{"x":1}'}
    assert journal(tmp_path).done == {0, 1, 3}


def test_a_last_line_cut_short_at_any_byte_is_dropped(tmp_path: Path):
    left_behind(tmp_path, 5, 6)
    path = only_file(tmp_path)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(len(content)):
        path.write_bytes(content[:length])
        cut = journal(tmp_path)
        assert cut.done == ({5} if length >= first else set())
        for other in set(cut.folder.iterdir()) - {path}:
            os.remove(other)


@pytest.mark.parametrize("offset", range(0, 14))
def test_an_altered_line_is_dropped_and_the_next_is_kept(tmp_path: Path, offset: int):
    left_behind(tmp_path, 5, 6)
    content = bytearray(only_file(tmp_path).read_bytes())
    content[offset] ^= 1
    only_file(tmp_path).write_bytes(content)
    assert journal(tmp_path).done == {6}


def test_lines_of_another_evaluation_are_not_valid_even_in_its_folder(tmp_path: Path):
    left_behind(tmp_path, 5)
    other = tmp_path / "partial-b"
    other.mkdir()
    only_file(tmp_path).rename(other / "process-0.lines")
    assert journal(tmp_path, "b").done == set()


def test_without_resuming_what_was_left_is_removed(tmp_path: Path):
    left_behind(tmp_path, 5)
    assert journal(tmp_path, resume=False).done == set()
    assert journal(tmp_path).done == set()


def test_finished_journal_leaves_nothing(tmp_path: Path):
    left_behind(tmp_path, 5)
    last = journal(tmp_path)
    last.append(0, b"[]")
    last.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_two_files_hold_is_read_once(tmp_path: Path):
    left_behind(tmp_path, 5)
    twice = journal(tmp_path)
    twice.append(5, b"[5]")
    assert [index for index, _ in journal(tmp_path).lines()] == [5]


def test_each_image_is_brought_in_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stands for two processes that share the folder: each finds the same files."""
    left_behind(tmp_path, 5, 6)
    monkeypatch.setattr(comm, "all_gather", lambda seen: [seen, seen | {9}])
    monkeypatch.setattr(comm, "get_rank", lambda: 0)
    first = journal(tmp_path)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    second = journal(tmp_path)
    assert first.done == second.done == {5, 6, 9}
    assert (dict(first.lines()), dict(second.lines())) == ({5: b"[5]", 6: b"[6]"}, {})


def test_a_disk_that_cannot_be_written_costs_a_warning_and_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A real file, whose size the system limits; see setrlimit(2)."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    written = journal(tmp_path)
    written.append(0, b"x" * 100)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
    try:
        with caplog.at_level(logging.WARNING, "maskformer"):
            written.append(1, b"y" * 100)
            written.append(2, b"z" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [len(caplog.records), "cannot be written" in caplog.text] == [1, True]
    assert dict(written.lines()) == {0: b"x" * 100, 1: b"y" * 100, 2: b"z" * 100}
    assert journal(tmp_path).done == {0}


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "maskformer"):
        written = journal(tmp_path / "file")
    written.append(4, b"[]")
    assert dict(written.lines()) == {4: b"[]"}
    assert "cannot be written" in caplog.text
    written.finish()


def test_own_lines_are_read_even_after_the_folder_was_removed(tmp_path: Path):
    written = journal(tmp_path)
    written.append(4, b"[]")
    os.remove(only_file(tmp_path))
    assert dict(written.lines()) == {4: b"[]"}


def test_earlier_files_that_vanish_are_named(tmp_path: Path):
    left_behind(tmp_path, 5)
    second = journal(tmp_path)
    written = next(path for path in second.folder.iterdir() if path.stat().st_size)
    os.remove(written)
    with pytest.raises(InputError, match=rf"{written.name} cannot be read .*; evaluate again"):
        list(second.lines())


def test_partial_results_are_removed_after_a_week(tmp_path: Path):
    left_behind(tmp_path, 5)
    assert tidy_partial_results(str(tmp_path)) == 1
    long_ago = time.time() - FORGOTTEN_AFTER - 60
    os.utime(only_file(tmp_path), (long_ago, long_ago))
    assert tidy_partial_results(str(tmp_path)) == 1  # its folder is younger
    os.utime(tmp_path / "partial-a", (long_ago, long_ago))
    assert tidy_partial_results(str(tmp_path)) == 0
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_what_is_measured(tmp_path: Path):
    tracemalloc = pytest.importorskip("tracemalloc")
    written = journal(tmp_path)
    written.append(0, b"x" * 1000)
    tracemalloc.start()
    for index in range(1, 1000):
        written.append(index, b"x" * 1000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 50_000  # of a million
