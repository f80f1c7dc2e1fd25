"""Writing of pictures, raw id maps and videos: each file is whole or not there."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from maskformer.files import folder_beside, unfinished
from maskformer.structures import BadImageError, InputError

from .drawing import ClassTable
from .sources import ids_path, name_for_opencv
from .tasks import IdMap

JPEG_QUALITY = 92
# A name that this file alone cannot have (too long, no text, a folder's), or a picture that its format cannot hold.
_OF_ONE_FILE = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, None)
# Tried in this order, the ending asked for first: which codecs exist depends on how OpenCV was built.
VIDEO_CODECS = ((".mp4", "mp4v"), (".avi", "XVID"), (".avi", "MJPG"))


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB, grey or 16-bit picture in the format that the name ends in; folders are created.

    Raises:
        BadImageError: this one cannot be written: its name, or the format's limits.
        InputError: no file can be written there.
    """
    suffix = path.suffix.lower()
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if suffix in (".jpg", ".jpeg", ".webp") else {}
    content = io.BytesIO()
    with _explained(path):
        Image.fromarray(picture).save(content, format=Image.registered_extensions()[suffix], **options)
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Write a file that is either whole or as it was, whenever the process or the machine stops."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path, flush=True) as temporary:
            temporary.write_bytes(content)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # the latter of a format's limits
        kind = BadImageError if getattr(error, "errno", None) in _OF_ONE_FILE else InputError
        raise kind(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. Check --output.") from error


def write_ids(picture_path: Path, ids: IdMap, facts: dict[str, Any], classes: ClassTable) -> None:
    """Write ``NAME_ids.png`` and then ``NAME_ids.json`` beside a picture.

    Args:
        picture_path: the picture that belongs to them.
        ids: the encoded result.
        facts: task, model, dataset and so on; they come first in the JSON.
        classes: K names.
    """
    write_picture(ids_path(picture_path, ".png"), ids.image)
    height, width = ids.image.shape[:2]
    named = [{"id": index, "name": name} for index, name in enumerate(classes.names)]
    content = {**facts, "height": height, "width": width, **ids.meaning, "classes": named}
    _write(ids_path(picture_path, ".json"), (json.dumps(content, indent=1) + "\n").encode())


def has_ids(picture_path: Path, facts: dict[str, Any]) -> bool:
    """Whether a picture and its ids are there, with these facts among those in the JSON.

    Args:
        picture_path: as for ``write_ids``.
        facts: likewise, or some of them.
    """
    try:
        content = json.loads(ids_path(picture_path, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_same = isinstance(content, dict) and all(content.get(key) == value for key, value in facts.items())
    return is_same and picture_path.is_file() and ids_path(picture_path, ".png").is_file()


def forget_ids(picture_path: Path) -> None:
    """Remove ``NAME_ids.json``, before what belongs to it is written anew.

    Raises:
        InputError: it cannot be removed.
    """
    with _explained(ids_path(picture_path, ".json")):
        ids_path(picture_path, ".json").unlink(missing_ok=True)


class VideoFile:
    """A video that is written frame by frame, in the first codec that this OpenCV has. Use it in a ``with`` block.

    The file has its name once the block ends without an error.

    Args:
        path: .mp4 or .avi; ``path`` says later which of them it became.
        frame_rate: frames a second.
    """

    def __init__(self, path: Path, frame_rate: float):
        self.path = path
        self._frame_rate = frame_rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append an RGB frame; all frames have the size of the first.

        Raises:
            BadImageError: no codec works for it.
            InputError: the file cannot be written.
        """
        if self._writer is None:
            self._writer = self._open(frame.shape[:2])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))  # OpenCV's frames are BGR

    def _open(self, frame_size: Sequence[int]) -> cv2.VideoWriter:
        height, width = frame_size
        name_for_opencv(self.path)
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = folder_beside(self.path)
        for suffix, codec in sorted(VIDEO_CODECS, key=lambda pair: pair[0] != self.path.suffix.lower()):
            path = self.path.with_suffix(suffix)
            aside = Path(self._folder.name, path.name)
            writer = cv2.VideoWriter(str(aside), cv2.VideoWriter.fourcc(*codec), self._frame_rate, (width, height))
            if writer.isOpened():
                self.path, self._aside = path, aside
                return writer
        self._folder.cleanup()
        codecs = ", ".join(codec for _, codec in VIDEO_CODECS)
        raise BadImageError(f"{self.path} cannot be written: check --output, or this OpenCV has no codec of {codecs}.")

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        with _explained(self.path), self._folder:
            if kind is None:
                self._aside.replace(self.path)
