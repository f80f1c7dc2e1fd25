"""Files that are there completely or not at all, whenever their process is stopped; checkpoints with a checksum beside.

A file is written aside, flushed to the disk where it has to outlive the machine, and renamed. The SHA-256 of a
checkpoint stands in ``NAME.sha256``, in the format of the command ``sha256sum``, before the file itself has its name.
While a file of the same name is replaced, the checksums of both stand there, so that a crash at any moment leaves a
file that is known.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

CHECKSUM_SUFFIX = ".sha256"
PARTIAL_SUFFIX = ".partial"  # of the folders that a killed process leaves
_BEGINNING = 32  # characters of the target's name in theirs, for whoever finds one


class CheckpointWriteError(OSError):
    """A checkpoint could not be written (disk full, folder gone or read-only); what was there before still is."""


def folder_beside(target: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder beside a file, to write it in; used in a ``with`` block, it is removed at the end.

    Only this user may enter it, so nobody can plant a link there; and what is written there has the target's name, so
    any name fits, and two processes that write the same file do not meet.

    Args:
        target: in a folder that exists.

    Raises:
        OSError: the disk refused.
    """
    return tempfile.TemporaryDirectory(PARTIAL_SUFFIX, _prefix(target), target.parent, ignore_cleanup_errors=True)


def _prefix(target: Path) -> str:
    """How the names of folders begin that are beside this file alone; they end in letters drawn by chance."""
    digest = hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    return f".{target.name[:_BEGINNING]}-{digest}-"


def remove_folders_beside(targets: Iterable[Path]) -> None:
    """Remove what a killed process left beside files that nobody writes now."""
    prefixes: dict[Path, set[str]] = {}
    for target in targets:
        prefixes.setdefault(target.parent, set()).add(_prefix(target))
    for folder, own in prefixes.items():
        names = os.listdir(folder) if folder.is_dir() else []
        for name in (name for name in names if name.endswith(PARTIAL_SUFFIX)):
            if name.rpartition("-")[0] + "-" in own:
                shutil.rmtree(folder / name, ignore_errors=True)


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON that every program reads: a number that is not finite, for which it has no word, is null.

    Args:
        content: what ``json.dumps`` takes; numbers of NumPy's too.
        indent: of lines; None: all in one line.
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def unfinished(target: Path, *, flush: bool = False) -> Iterator[Path]:
    """Give a temporary name for a file, which becomes the file's own when all went well and is removed if not.

    Args:
        target: in a folder that exists; an earlier file, or a link, is replaced.
        flush: to the disk, content and name: against a machine that stops, not only a process.

    Raises:
        OSError: the disk refused; the earlier file is as it was.
    """
    with folder_beside(target) as folder:
        temporary = Path(folder, target.name)
        yield temporary
        if flush:
            _flush(temporary)
        os.replace(temporary, target)
        if flush:
            with contextlib.suppress(OSError):  # some network file systems cannot flush a folder
                _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _HashingWriter:
    """What ``torch.save`` writes to: hashes on the way, and keeps the disk's error, which PyTorch would cover."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Append bytes to the file."""
        try:
            written = self._file.write(content)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(content)
        return written

    def flush(self) -> None:
        """For ``torch.save``, which may call it; ``unfinished`` flushes at the end."""


def save_checkpoint(content: Any, path: str) -> None:
    """Save with ``torch.save``, so that ``path`` is at every moment the earlier file or the new one, each whole.

    Args:
        content: what ``torch.save`` takes.
        path: file in a folder that exists; replaced if it exists.

    Raises:
        CheckpointWriteError: the disk refused; the earlier file and its checksum are as they were.
    """
    name, checksums = os.path.basename(path), path + CHECKSUM_SUFFIX
    with _explained(path):
        try:
            with unfinished(Path(path), flush=True) as temporary:
                digest = _save(content, temporary)
                # Of the file that is replaced, also of one that was written without a checksum beside it.
                before = (sorted(_read_checksums(path)) or [_hash_file(path)]) if os.path.exists(path) else []
                _replace_text(checksums, "".join(f"{each}  {name}\n" for each in dict.fromkeys([*before, digest])))
        except OSError:
            if not os.path.exists(path):
                _remove(checksums)
            raise
        _replace_text(checksums, f"{digest}  {name}\n")


def _save(content: Any, path: Path) -> str:
    """Save with ``torch.save``; the SHA-256 of what was written."""
    with open(path, "wb") as file:
        writer = _HashingWriter(file)
        try:
            torch.save(content, cast(BinaryIO, writer))
        except Exception:
            if writer.error is not None:
                raise writer.error from None
            raise
    return writer.hash.hexdigest()


def write_text(path: str, text: str) -> None:
    """Write a short text so that the file is at every moment the earlier one or the new one.

    Raises:
        CheckpointWriteError: the disk refused; the earlier file is as it was.
    """
    with _explained(path):
        _replace_text(path, text)


def find_damage(path: str) -> str | None:
    """What is wrong with a checkpoint file: the end of a sentence; None if it is as it was written.

    A file without a checksum beside it (of an earlier version, or of other software) is not judged.
    """
    if not os.path.isfile(path):
        return "does not exist"
    if not os.path.exists(path + CHECKSUM_SUFFIX):
        return None
    try:
        digest = _hash_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest not in _read_checksums(path):
        return f"is not what was written: its SHA-256 is not the one in {os.path.basename(path)}{CHECKSUM_SUFFIX}"
    return None


def remove_checkpoint(path: str) -> None:
    """Delete a checkpoint and its checksum, as far as they exist and can be deleted."""
    _remove(path)
    _remove(path + CHECKSUM_SUFFIX)


def remove_partial_files(folder: str) -> None:
    """Delete what a killed process left half written in a folder."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(".") and name.endswith(PARTIAL_SUFFIX):
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
                _remove(os.path.join(folder, name))  # a file, as earlier versions left it


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointWriteError(
            error.errno, f"Checkpoint file cannot be written ({reason}); earlier ones are as they were", path
        ) from error


def _replace_text(path: str, text: str) -> None:
    with unfinished(Path(path), flush=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_checksums(path: str) -> set[str]:
    try:
        with open(path + CHECKSUM_SUFFIX, encoding="ascii", errors="replace") as file:
            return {line.split()[0] for line in file if line.split()}
    except OSError:
        return set()


def _hash_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)
