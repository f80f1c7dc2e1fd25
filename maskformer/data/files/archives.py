"""Files in a zip, read without unpacking it, by whatever opens files with Detectron2's ``PathManager``.

``zip:///data/pictures.zip/train/a.jpg`` is the member ``train/a.jpg`` of ``/data/pictures.zip``. Each process opens an
archive for itself: two that share an open file would move each other's position in it.
"""

from __future__ import annotations

import functools
import io
import os
import zipfile
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

from maskformer.structures import InputError

PREFIX = "zip://"
_MOST_BYTES = 2**30  # of a member that is unpacked into memory; far above any picture


def list_members(folder: str) -> list[str]:
    """The names of the files below a folder of an archive, without the folder.

    Raises:
        InputError: it is no archive, or a name would lead out of it.
    """
    path, inside = split_address(folder)
    members = _open_here(path).namelist()
    for name in members:
        if name.startswith("/") or os.pardir in name.replace("\\", "/").split("/"):
            raise InputError(
                f"{path} holds the name {name!r}, which leads out of it; expected names inside: pack it anew."
            )
    head = f"{inside}/" if inside else ""
    return [name[len(head) :] for name in members if name.startswith(head) and not name.endswith("/")]


def split_address(address: str) -> tuple[str, str]:
    """The path of an archive and a name in it, "" for the whole of it.

    Raises:
        InputError: there is no such archive.
    """
    path = Path(address.removeprefix(PREFIX))
    archive = next((part for part in (path, *path.parents) if os.path.isfile(part)), None)
    if archive is None:
        raise InputError(f"{path} is in no archive that exists; correct the path.")
    return str(archive), "" if archive == path else path.relative_to(archive).as_posix()


def _open_here(path: str) -> zipfile.ZipFile:
    status = os.stat(path)
    try:
        return _open(path, os.getpid(), (status.st_size, status.st_mtime_ns))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputError(f"{path} is no zip that can be read: {error}; pack it anew.") from error


@functools.lru_cache(maxsize=8)
def _open(path: str, _process: int, _state: tuple[int, int]) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


class _ZipHandler(PathHandler):
    """Opens members of archives for ``PathManager``."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _open(self, path: str, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:
        archive, name = split_address(path)
        try:
            member = _open_here(archive).getinfo(name)
        except KeyError as error:
            raise FileNotFoundError(2, "it is not in the archive", path) from error
        if member.file_size > _MOST_BYTES:
            raise OSError(27, f"it unpacks to {member.file_size} bytes, {_MOST_BYTES} are allowed", path)
        # No more than that is unpacked, whatever the compressed data hold.
        content = io.BytesIO(_open_here(archive).read(member))
        return content if "b" in mode else io.TextIOWrapper(content, encoding="utf-8")

    def _isfile(self, path: str, **_: Any) -> bool:
        try:
            archive, name = split_address(path)
            return not _open_here(archive).getinfo(name).is_dir()
        except (InputError, KeyError):
            return False

    _exists = _isfile


PathManager.register_handler(_ZipHandler(), allow_override=True)
