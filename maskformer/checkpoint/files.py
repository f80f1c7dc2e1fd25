"""Checkpoint files: whole or not there at all, and known to be whole.

A file is written aside (``.NAME.partial`` in the same folder), flushed to the disk and renamed. Its SHA-256 stands in
``NAME.sha256``, in the format of the command ``sha256sum``, before the file itself has its name. While a file of the
same name is replaced, the checksums of both stand there, so that a crash at any moment leaves a file that is known.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, cast

import torch

CHECKSUM_SUFFIX = ".sha256"
PARTIAL_SUFFIX = ".partial"
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
        """For ``torch.save``, which may call it; ``_write_aside`` flushes at the end."""

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
    digest = ""

    def write(file: BinaryIO) -> None:
        nonlocal digest
        writer = _HashingWriter(file)
        try:
            torch.save(content, cast(BinaryIO, writer))
        except Exception:
            if writer.error is not None:
                raise writer.error from None
            raise
        digest = writer.digest()

    with _explained(path):
        partial = _write_aside(path, write)
        try:
            _replace_text(path + CHECKSUM_SUFFIX, _format_checksums(path, [*_checksums_before(path), digest]))
            os.replace(partial, path)
        except OSError:
            _remove(partial)
            if not os.path.exists(path):
                _remove(path + CHECKSUM_SUFFIX)
            raise
        _flush_folder(path)
        _replace_text(path + CHECKSUM_SUFFIX, _format_checksums(path, [digest]))


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
                _remove(os.path.join(folder, name))


@contextlib.contextmanager
def _explained(path: str) -> Any:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointWriteError(
            error.errno, f"Checkpoint file cannot be written ({reason}); earlier ones are as they were", path
        ) from error


def _write_aside(path: str, write: Callable[[BinaryIO], None]) -> str:
    """Write and flush what is to be renamed to ``path``; nothing is left of it after an error."""
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}{PARTIAL_SUFFIX}")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _remove(partial)
        raise
    return partial


def _replace_text(path: str, text: str) -> None:
    partial = _write_aside(path, lambda file: _write_all(file, text))
    try:
        os.replace(partial, path)
    except OSError:
        _remove(partial)
        raise
    _flush_folder(path)


def _write_all(file: BinaryIO, text: str) -> None:
    file.write(text.encode())


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
