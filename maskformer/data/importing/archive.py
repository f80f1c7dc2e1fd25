"""Opening what a program exported: a folder, a file in it, or a zip archive, which is unpacked."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

from maskformer.structures import InputError

_OTHER_ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_MOST_RATIO, _SMALL = 200, 2**24  # bytes: what is larger, and shrank more, is no picture and no text


def open_source(source: Path, work: Path) -> tuple[Path, Path | None]:
    """Find the folder of a source.

    Args:
        source: what the user named.
        work: an empty folder, for what an archive holds.

    Returns:
        The folder, and the file in it that the user named, if it is one.

    Raises:
        InputError: it does not exist, or the archive cannot be unpacked.
    """
    if not source.exists():
        raise InputError(f"SOURCE {source} does not exist; expected a folder, a file or a zip archive.")
    if source.is_dir():
        return _enter(source), None
    if source.suffix.lower() in _OTHER_ARCHIVES:
        raise InputError(
            f"SOURCE {source} is an archive of the type {source.suffix}; expected a folder, a file in it, or a zip "
            "archive: unpack it, and name its folder."
        )
    if source.suffix.lower() != ".zip":
        return source.parent, source
    _unpack(source, work)
    return _enter(work), None


def _enter(folder: Path) -> Path:
    """The folder that holds anything: archives often have one folder that holds all."""
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return _enter(inside[0]) if len(inside) == 1 and inside[0].is_dir() and inside[0].name != "img" else folder


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            for member in members:
                if member.file_size > max(_MOST_RATIO * member.compress_size, _SMALL):
                    raise InputError(f"{archive} holds {member.filename}, which unpacks to {member.file_size} bytes.")
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if needed > free:
                raise InputError(f"{archive} unpacks to {needed} bytes, but {folder.parent} has {free} left.")
            content.extractall(folder)  # which takes "..", drives and leading slashes out of names
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(f"{archive} cannot be unpacked: {error}; unpack it yourself, or export it again.") from error
