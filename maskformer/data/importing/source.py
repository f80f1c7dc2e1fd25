"""What a reader of a format gives: the pictures of each split, what is annotated in them, and what is lost of it.

A reader is a function ``read(root, main, losses) -> Source``: the folder, the file that the user named in it (None: the
folder itself), and where to count what a dataset cannot hold. Names of files that a source holds are looked up among
the files that are there, so none can lead out of the folder.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from maskformer.structures import BadImageError, InputError

from ..files.json_files import read_json
from ..files.reading import decode, read_picture, refuse_what_is_no_file, to_rgb
from .target import IMAGE_SUFFIXES

Size = tuple[int, int]  # height, width
REMEDY = "Restore it, or export the dataset again."
TRAINING, EVALUATION = ("train", "training", "trainval"), ("val", "valid", "validation", "test", "testing")
_MOST_BYTES = 2**26  # of a text file
_LOOKED_AT = 20  # JSON files
BACKGROUNDS = ("background", "_background_", "__background__")


@dataclass(frozen=True)
class Annotated:
    """An object in a picture.

    Attributes:
        name: of its class; None: pixels that are to be ignored.
        segmentation: COCO's polygons in pixels, or compressed RLE with text.
    """

    name: str | None
    segmentation: Any


@dataclass(frozen=True)
class Entry:
    """A picture of a source, not read yet.

    Attributes:
        name: what the picture's file is to be called, with an ending, relative to the split's folder.
        where: what to call the annotations in messages.
        picture: gives the file, or its content.
        annotate: gives, for the (height, width) of the upright picture, its objects in the order of drawing, or a label
            map (H,W) of integers. It raises ``BadImageError`` where the picture cannot be used.
    """

    name: str
    where: str
    picture: Callable[[], Path | bytes]
    annotate: Callable[[Size], list[Annotated] | np.ndarray]


@dataclass(frozen=True)
class Source:
    """A dataset of another program.

    Attributes:
        classes: K names; empty for label maps whose values nothing names.
        splits: the pictures of each.
        form: what it holds rather: "instances" or "labels".
        has_label_maps: whether ``annotate`` gives label maps; then the values of classes are ``ids``.
        ids: K values.
        keep: what has to live as long as the entries are read.
    """

    classes: tuple[str, ...]
    splits: dict[str, list[Entry]]
    form: str = "instances"
    has_label_maps: bool = False
    ids: tuple[int, ...] = ()
    keep: Any = None


@dataclass
class Losses:
    """Counts what is lost or changed, and remembers where it happened first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Count ``what``; ``where`` names a file or a place in it."""
        if count:
            self.counts[what] += count
            self.first.setdefault(what, where)


class Pictures:
    """The pictures below a folder, found by what annotations call them.

    Args:
        root: the folder; links to folders are followed.
    """

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, Path] = {}
        for path in walk(root):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self.files[_normal(path.relative_to(root).as_posix())] = path
        self._of_name: dict[str, list[str]] = {}
        for name in self.files:
            parts = PurePosixPath(name)
            for key in {parts.name, parts.stem}:  # frames of a video are named without an ending
                self._of_name.setdefault(key, []).append(name)

    def beside(self, name: str, folder: str) -> str | None:
        """The picture of a name, with or without its ending, in a folder."""
        return next((each for each in self._of_name.get(_normal(name), []) if os.path.dirname(each) == folder), None)

    def find(self, name: str, near: str = "") -> str | None:
        """The picture that a source calls so, as a path from the root, or None.

        Args:
            name: a path of this or another machine, relative or not, with "/" or a backslash, as it is or as in an
                address; its last folders have to be those of the file, as far as both have any.
            near: the folder, from the root, that a relative name starts from.
        """
        for wanted in dict.fromkeys(_normal(text).replace("\\", "/") for text in (name, unquote(name))):
            beside = os.path.normpath(os.path.join(near, wanted)).replace(os.sep, "/")
            if beside in self.files:
                return beside
            parts = [part for part in wanted.split("/") if part not in ("", ".", "..")]
            found = [each for each in self._of_name.get(parts[-1], []) if _agree(each, parts)] if parts else []
            if len(found) == 1:
                return found[0]
        return None


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder in the order of their names; hidden ones, and what macOS adds to archives, are not."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _agree(path: str, parts: list[str]) -> bool:
    """Whether the folders of a file and of a name are the same, from the last on, as far as both go."""
    own = path.split("/")[:-1]
    number = min(len(own), len(parts) - 1)
    return own[len(own) - number :] == parts[len(parts) - 1 - number : -1]


def entry_of_file(pictures: Pictures, name: str, annotate: Callable[[Size], Any], where: str = "") -> Entry:
    """The entry of a picture that ``find`` gave."""
    return Entry(name, where or name, lambda: pictures.files[name], annotate)


def read_size(source: Path | bytes, where: str) -> Size:
    """Decode a picture, which so is known to be whole: its (height, width), upright.

    Raises:
        BadImageError: it cannot be used.
    """
    if isinstance(source, Path):
        picture = read_picture(str(source), REMEDY)
    else:
        picture = to_rgb(decode(source, where, "Image", REMEDY), where, REMEDY)
    return picture.height, picture.width


def check_size(size: Size, declared: tuple[Any, Any], where: str) -> None:
    """Compare a picture's (height, width) with what its annotation says, if it does.

    Raises:
        BadImageError: they differ.
    """
    if None not in declared and tuple(declared) != size:
        raise BadImageError(
            f"{where} is {size[1]} x {size[0]} pixels (width x height), but its annotation says {declared[1]} x "
            f"{declared[0]}. {REMEDY}"
        )


def read_json_file(path: Path) -> Any:
    """The content of a JSON file of a source.

    Raises:
        BadImageError: it is none.
    """
    refuse_what_is_no_file(str(path))
    try:
        return read_json(path)
    except InputError as error:
        raise BadImageError(str(error)) from error


def find_coco(root: Path) -> Path | None:
    """A COCO JSON among the first files of a source, which needs no import."""
    for path in itertools.islice((path for path in walk(root) if path.suffix.lower() == ".json"), _LOOKED_AT):
        with contextlib.suppress(BadImageError):
            content = read_json_file(path)
            if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
                return path
    return None


def read_text(path: Path) -> str:
    """The content of a text file of a source.

    Raises:
        BadImageError: it cannot be read, or is too large for what it should hold.
    """
    refuse_what_is_no_file(str(path))
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadImageError(f"{path} has {path.stat().st_size} bytes; expected {_MOST_BYTES} at most. {REMEDY}")
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise BadImageError(f"{path} cannot be read: {error.strerror}. {REMEDY}") from error
