from __future__ import annotations

import hashlib
import os
import pickle
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from maskformer import files
from maskformer.files import CheckpointWriteError, find_damage, remove_partial_files, save_checkpoint, write_text

CONTENT = {"model": {"weight": torch.arange(1000.0)}, "iteration": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model_0000003.pth"
    save_checkpoint(CONTENT, str(path))
    return path


@pytest.fixture
def small_files() -> Iterator[None]:
    """A process may write no file over 100,000 bytes: to it, the disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saved_file_is_read_back_and_its_checksum_is_that_of_sha256sum(saved: Path):
    loaded = torch.load(saved, weights_only=True)
    assert loaded["iteration"] == 3 and torch.equal(loaded["model"]["weight"], torch.arange(1000.0))
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert (saved.parent / "model_0000003.pth.sha256").read_text() == f"{digest}  model_0000003.pth\n"
    subprocess.run(["sha256sum", "--check", "model_0000003.pth.sha256"], cwd=saved.parent, check=True)
    assert sorted(contents(saved.parent)) == ["model_0000003.pth", "model_0000003.pth.sha256"]
    assert find_damage(str(saved)) is None


def test_one_changed_byte_is_found_wherever_it_is(saved: Path):
    whole = saved.read_bytes()
    for place in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "is not what was written" in (find_damage(str(saved)) or ""), place
    saved.write_bytes(whole)
    assert find_damage(str(saved)) is None


@pytest.mark.parametrize("kept", [0, 1, 22, 0.25, 0.5, 0.99, -22, -1])
def test_file_cut_short_is_found_wherever_it_ends(kept: float, saved: Path):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "is not what was written" in (find_damage(str(saved)) or "")


def test_changed_checksum_is_found_and_a_missing_file_is_named(saved: Path):
    checksum = saved.with_name(saved.name + ".sha256")
    checksum.write_text("0" + checksum.read_text()[1:] if checksum.read_text()[0] != "0" else "1")
    assert "is not what was written" in (find_damage(str(saved)) or "")
    saved.unlink()
    assert find_damage(str(saved)) == "does not exist"


def test_full_disk_leaves_the_earlier_file_and_nothing_else(saved: Path, small_files: None):
    before = contents(saved.parent)
    for name in (saved.name, "model_0000007.pth"):
        with pytest.raises(CheckpointWriteError, match=r"cannot be written \(File too large\)") as caught:
            save_checkpoint({"model": torch.zeros(100_000)}, str(saved.parent / name))
        assert caught.value.filename == str(saved.parent / name)
    assert contents(saved.parent) == before


def test_error_of_the_content_is_not_taken_for_one_of_the_disk(tmp_path: Path):
    with pytest.raises((AttributeError, pickle.PicklingError)):  # Python's own, whose words change with its versions
        save_checkpoint({"model": lambda: None}, str(tmp_path / "model.pth"))
    assert contents(tmp_path) == {}


def test_vanished_folder_is_a_write_error(tmp_path: Path):
    with pytest.raises(CheckpointWriteError, match="No such file or directory"):
        save_checkpoint(CONTENT, str(tmp_path / "gone" / "model.pth"))
    with pytest.raises(CheckpointWriteError, match="No such file or directory"):
        write_text(str(tmp_path / "gone" / "last_checkpoint"), "model.pth")


class Crash(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", range(1, 4))
def test_crash_at_any_rename_leaves_a_file_that_is_known_as_whole(
    at: int, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    renames = []

    def rename(source: str, target: str) -> None:
        renames.append(target)
        if len(renames) == at:
            raise Crash
        os.rename(source, target)

    monkeypatch.setattr(files.os, "replace", rename)
    with pytest.raises(Crash):
        save_checkpoint({"model": {"weight": torch.zeros(3)}}, str(saved))
    assert find_damage(str(saved)) is None
    assert len(torch.load(saved, weights_only=True)["model"]["weight"]) == (1000 if at < 3 else 3)


def test_file_without_a_checksum_stays_known_while_it_is_replaced(saved: Path, monkeypatch: pytest.MonkeyPatch):
    earlier = hashlib.sha256(saved.read_bytes()).hexdigest()
    saved.with_name(saved.name + ".sha256").unlink()
    assert find_damage(str(saved)) is None
    written = []
    replace_text = files._replace_text
    monkeypatch.setattr(files, "_replace_text", lambda path, text: (written.append(text), replace_text(path, text)))
    save_checkpoint({"model": {"weight": torch.zeros(3)}}, str(saved))
    assert [line.split()[0] == earlier for line in written[0].splitlines()] == [True, False]
    assert len(written[1].splitlines()) == 1


def test_partial_files_of_killed_processes_are_removed(saved: Path):
    before = contents(saved.parent)
    folder = saved.parent / ".model_0000007.pth-a1b2c3d4.partial"
    folder.mkdir()
    (folder / "model_0000007.pth").write_bytes(b"half")
    (saved.parent / ".model_0000006.pth.partial").write_bytes(b"half, of an earlier version")
    remove_partial_files(str(saved.parent))
    remove_partial_files(str(saved.parent / "gone"))
    assert contents(saved.parent) == before
