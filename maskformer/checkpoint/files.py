"""Checkpoint files: whole or not there at all, and known to be whole.

A file is written aside (see ``unfinished``), flushed to the disk and renamed. Its SHA-256 stands in
``NAME.sha256``, in the format of the command ``sha256sum``, before the file itself has its name. While a file of the
same name is replaced, the checksums of both stand there, so that a crash at any moment leaves a file that is known.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from maskformer.files import PARTIAL_SUFFIX, unfinished

CHECKSUM_SUFFIX = ".sha256"
_CHUNK = 2**20  # bytes


class CheckpointWriteError(OSError):
    """A checkpoint could not be written (disk full, folder gone or read-only); what was there before still is."""


class _HashingWriter:
    """What ``torch.save`` writes to: hashes on the way, and keeps the disk's error, which PyTorch would cover."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Append bytes to the file."""
        try:
            written = self._file.write(content)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(content)
        return written

    def flush(self) -> None:
        """For ``torch.save``, which may call it; ``unfinished`` flushes at the end."""

    def digest(self) -> str:
        """The SHA-256 of all that was written, in hexadecimal digits."""
        return self._hash.hexdigest()


def save_checkpoint(content: Any, path: str) -> None:
    """Save with ``torch.save``, so that ``path`` is at every moment the earlier file or the new one, each whole.

    Args:
        content: what ``torch.save`` takes.
        path: file in a folder that exists; replaced if it exists.

    Raises:
        CheckpointWriteError: the disk refused; the earlier file and its checksum are as they were.
    """
    with _explained(path):
        try:
            with unfinished(Path(path), flush=True) as temporary:
                digest = _save(content, temporary)
                _replace_text(path + CHECKSUM_SUFFIX, _format_checksums(path, [*_checksums_before(path), digest]))
        except OSError:
            if not os.path.exists(path):
                _remove(path + CHECKSUM_SUFFIX)
            raise
        _flush_folder(path)
        _replace_text(path + CHECKSUM_SUFFIX, _format_checksums(path, [digest]))


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
    return writer.digest()


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

    Args:
        path: of the checkpoint.
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


@contextlib.contextmanager
def _explained(path: str) -> Any:
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
    _flush_folder(path)


def _flush_folder(path: str) -> None:
    """A rename is on the disk when its folder is; some network file systems cannot flush one."""
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _format_checksums(path: str, digests: Iterable[str]) -> str:
    return "".join(f"{digest}  {os.path.basename(path)}\n" for digest in dict.fromkeys(digests))


def _checksums_before(path: str) -> list[str]:
    """Of the file that is to be replaced, also of one that was written without a checksum beside it."""
    if not os.path.exists(path):
        return []
    return sorted(_read_checksums(path)) or [_hash_file(path)]


def _read_checksums(path: str) -> set[str]:
    try:
        with open(path + CHECKSUM_SUFFIX, encoding="ascii", errors="replace") as file:
            return {line.split()[0] for line in file if line.split()}
    except OSError:
        return set()


def _hash_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)
