"""Images, videos and raw id maps: what to read and where to write, and both; a written file is whole or not there."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from maskformer.data.files import reading
from maskformer.files import folder_beside, unfinished
from maskformer.structures import BadImageError, Bands, InputError

from .tasks import ClassTable, IdMap

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
WRITABLE_VIDEO_SUFFIXES = (".mp4", ".avi")
DEFAULT_FRAME_RATE = 25.0  # frames a second, where a file or a camera does not say
JPEG_QUALITY = 92
# A name that this file alone cannot have (too long, no text, a folder's), or a picture that its format cannot hold.
_OF_ONE_FILE = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, None)
# Tried in this order, the ending asked for first: which codecs exist depends on how OpenCV was built.
VIDEO_CODECS = ((".mp4", "mp4v"), (".avi", "XVID"), (".avi", "MJPG"))


@dataclass(frozen=True)
class Source:
    """Something to read pictures from.

    Attributes:
        name: the file; for a camera, what its recording is called.
        is_video: whether it gives frames, not one image.
        camera: the index of a camera; None for files.
    """

    name: str
    is_video: bool = False
    camera: int | None = None

    @classmethod
    def of_file(cls, path: str) -> Source:
        """An image or a video, as the name's ending says; an unknown ending is tried as an image."""
        return cls(path, is_video=Path(path).suffix.lower() in VIDEO_SUFFIXES)


def find_sources(patterns: Sequence[str]) -> list[Source]:
    """The files that paths, folders and globs stand for, in order and each once; whoever reads them finds bad ones.

    Args:
        patterns: files, folders (their images and videos, not those of subfolders) and globs (``**`` included).

    Raises:
        InputError: a pattern stands for nothing.
    """
    paths = dict.fromkeys(path for pattern in patterns for path in _expand(os.path.expanduser(pattern)))
    return [Source.of_file(path) for path in paths]


def _expand(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        names = sorted(name for name in os.listdir(pattern) if _has_known_ending(name))
        if not names:
            endings = " ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
            raise InputError(f"Folder {pattern} given as input holds no image or video ({endings}).")
        return [os.path.join(pattern, name) for name in names]
    if os.path.lexists(pattern):
        return [pattern]
    found = sorted(glob.glob(pattern, recursive=True))
    matches = [path for path in found if _has_known_ending(os.path.basename(path)) or not os.path.isdir(path)]
    if not matches:
        raise InputError(
            f"No file matches the input {pattern}. Give images, folders, globs or videos; KEY VALUE options come last, "
            "after another option such as --output."
        )
    return matches


def _has_known_ending(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES


def read_picture(path: str, bands: Bands | None = None) -> np.ndarray:
    """One image as (height,width,3) uint8 RGB, turned upright by its EXIF orientation; ``bands`` as ``Predictor``'s.

    Raises:
        BadImageError: the file cannot be read or is not a whole image.
    """
    return np.asarray(reading.read_picture(path, "Give another file or leave it out.", bands))


def name_for_opencv(path: str | Path) -> str:
    """The name of a video file, as text: OpenCV ends the process by a segmentation fault on one that is none.

    Raises:
        BadImageError: it is no UTF-8.
    """
    name = str(path)
    if name != name.encode(errors="replace").decode():
        raise BadImageError(f"{name} cannot be opened: its name is no UTF-8, which videos need; rename it.")
    return name


def digest(path: str) -> str:
    """What a picture's file holds, as 32 hexadecimal digits.

    Raises:
        BadImageError: it cannot be read.
    """
    reading.refuse_what_is_no_file(path)
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise BadImageError(f"{path} cannot be read: {error.strerror or error}. Restore it or leave it out.") from error


class Video:
    """An open video file or camera; iterating gives (height,width,3) uint8 RGB frames, once.

    Attributes:
        frame_rate: frames a second.
        num_frames: as the file's header says; None for cameras and files that do not say.

    Raises:
        BadImageError: it cannot be opened.
    """

    def __init__(self, source: Source):
        if source.camera is None:
            reading.refuse_what_is_no_file(source.name)
            self._capture = cv2.VideoCapture(name_for_opencv(source.name))
        else:
            self._capture = cv2.VideoCapture(source.camera)
        if not self._capture.isOpened():
            raise BadImageError(f"{source.name} cannot be opened; expected a video file or the index of a camera.")
        frame_rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frame_rate = frame_rate if 0 < frame_rate < 1000 else DEFAULT_FRAME_RATE  # NaN and 0 mean "unknown"
        self.num_frames: int | None = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            while True:
                is_read, frame = self._capture.read()
                if not is_read:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # OpenCV's frames are BGR
        finally:
            self._capture.release()


def plan_outputs(sources: Sequence[Source], output: str) -> list[Path]:
    """The picture or video file that each source is drawn into.

    Args:
        sources: what is read.
        output: a file (for one source), or a folder, where sources that differ in their endings alone, such as a.jpg
            and a.png, have them in their names: a_jpg.jpg and a_png.png.

    Raises:
        InputError: a file for several sources, a wrong ending, two sources of one name, or a source in the way.
    """
    if os.path.isdir(output) or output.endswith(("/", os.sep)) or not Path(output).suffix:
        counts = Counter((source.is_video, Path(source.name).stem) for source in sources)
        outputs = []
        for source in sources:
            name = Path(source.name)
            is_alone = counts[source.is_video, name.stem] == 1
            stem = name.stem if is_alone or not name.suffix else f"{name.stem}_{name.suffix[1:]}"
            image_suffix = name.suffix if name.suffix.lower() in IMAGE_SUFFIXES else ".png"
            outputs.append(Path(output, stem + (WRITABLE_VIDEO_SUFFIXES[0] if source.is_video else image_suffix)))
    elif len(sources) > 1:
        raise InputError(f"--output {output} is a file, but there are {len(sources)} inputs: give a folder.")
    else:
        suffixes = WRITABLE_VIDEO_SUFFIXES if sources[0].is_video else IMAGE_SUFFIXES
        if Path(output).suffix.lower() not in suffixes:
            raise InputError(
                f"--output {output} ends in {Path(output).suffix}; expected one of {' '.join(suffixes)} for "
                f"{sources[0].name}, or a folder (end it with /)."
            )
        outputs = [Path(output)]
    read = {os.path.realpath(source.name) for source in sources}
    first_of: dict[Path, Source] = {}
    for source, planned in zip(sources, outputs, strict=True):
        for written in [planned] if source.is_video else [planned, ids_path(planned, ".png")]:
            first = first_of.setdefault(written, source)
            if first is not source:
                raise InputError(
                    f"{first.name} and {source.name} would both be written to {written}: draw them one by one."
                )
            if os.path.realpath(written) in read:
                raise InputError(f"--output {written} would overwrite an input: give another file or folder.")
    return outputs


def ids_path(output: Path, suffix: str) -> Path:
    """Where the raw ids of a picture go: ``NAME_ids.png``, ``NAME_ids.json`` beside it."""
    return output.with_name(f"{output.stem}_ids{suffix}")


def files_of(output: Path) -> list[Path]:
    """What may be written of a source: its picture or video, and a picture's ids."""
    return [output, ids_path(output, ".png"), ids_path(output, ".json")]


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB, grey or 16-bit picture in the format that the name ends in; folders are created.

    Raises:
        BadImageError: this one cannot be written: its name, or the format's limits.
        InputError: no file can be written there.
    """
    suffix = path.suffix.lower()
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if suffix in (".jpg", ".jpeg", ".webp") else {}
    content = io.BytesIO()
    with explained(path):
        Image.fromarray(picture).save(content, format=Image.registered_extensions()[suffix], **options)
    _write(path, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Write a file that is either whole or as it was, whenever the process or the machine stops."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path, flush=True) as temporary:
            temporary.write_bytes(content)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the disk's refusal to write a file into one sentence.

    Raises:
        BadImageError: this one cannot be written: its name, or the format's limits.
        InputError: no file can be written there.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # the latter of a format's limits
        kind = BadImageError if getattr(error, "errno", None) in _OF_ONE_FILE else InputError
        raise kind(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. Check --output.") from error


def write_result(path: Path, picture: np.ndarray, ids: IdMap, facts: dict[str, Any], classes: ClassTable) -> None:
    """Write a picture, ``NAME_ids.png`` and last ``NAME_ids.json``, which says that the others are complete.

    Args:
        path: of the picture; the ids lie beside it.
        picture: (height,width,3) uint8 RGB.
        ids: the encoded result.
        facts: task, model, dataset and so on; they come first in the JSON.
        classes: K names.

    Raises:
        BadImageError: the picture cannot be written: its name, or the format's limits.
        InputError: no file can be written there.
    """
    json_file = ids_path(path, ".json")
    with explained(json_file):
        json_file.unlink(missing_ok=True)
    write_picture(path, picture)
    write_picture(ids_path(path, ".png"), ids.image)
    height, width = ids.image.shape[:2]
    named = [{"id": index, "name": name} for index, name in enumerate(classes.names)]
    content = {**facts, "height": height, "width": width, **ids.meaning, "classes": named}
    _write(json_file, (json.dumps(content, indent=1) + "\n").encode())


def has_ids(picture_path: Path, facts: dict[str, Any]) -> bool:
    """Whether ``write_result`` wrote a picture's ids with these facts, or more, and both are there."""
    try:
        content = json.loads(ids_path(picture_path, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_same = isinstance(content, dict) and all(content.get(key) == value for key, value in facts.items())
    return is_same and picture_path.is_file() and ids_path(picture_path, ".png").is_file()


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
            self._writer = self._open(*frame.shape[:2])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))  # OpenCV's frames are BGR

    def _open(self, height: int, width: int) -> cv2.VideoWriter:
        name_for_opencv(self.path)
        with explained(self.path):
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

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if self._writer is None:
            return
        self._writer.release()
        with explained(self.path), self._folder:
            if kind is None:
                self._aside.replace(self.path)
