"""Finding the files of a user's own dataset: in folders and archives, by name or by a list.

A file's key is its name below the folder, without the suffix: what an image and its label have in common. In a path, a
``*`` stands for one folder of any name, which the key begins with.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from detectron2.utils.file_io import PathManager

from maskformer.structures import InputError, OwnDataset

from ..files import archives
from .own_hints import explain_missing_folder, explain_no_files

logger = logging.getLogger(__name__)

Files = dict[str, list[str]]  # key -> the paths of its files

PHOTOS = (".jpg", ".jpeg", ".webp")  # whose compression changes values: no label is one
IMAGES = (*PHOTOS, ".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
LABELS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm")


def find_files(dataset: OwnDataset, path_key: str, other_key: str = "") -> Files:
    """The files of a folder and its subfolders by their keys, in the order of their names.

    Args:
        dataset: says where to look.
        path_key: the folder's name among its ``paths``.
        other_key: that of the folder of the images' labels, or of the labels' images. Where it is the same one or
            below, its files are left out, as far as they can be told by their suffix.

    Raises:
        InputError: the folder is missing, or has no such file.
    """
    folder, other = dataset.paths[path_key], dataset.paths.get(other_key, "")
    root, pattern = _split_pattern(folder)
    if not (root.startswith(archives.PREFIX) or os.path.isdir(root)):
        raise InputError(explain_missing_folder(f"{dataset.key}.{path_key}", root))
    suffixes = [dataset.image_suffix, dataset.label_suffix]
    own_suffix, other_suffix = suffixes if path_key == "images" else suffixes[::-1]
    types = IMAGES if path_key == "images" else LABELS
    by_type_alone = other == folder and not own_suffix and not other_suffix
    found: Files = defaultdict(list)
    names = list_names(root)
    for name in names:
        path, place = f"{root}/{name}", pattern.fullmatch(name)
        if place is None or (other != folder and other.startswith(f"{folder}/") and path.startswith(f"{other}/")):
            continue
        key = key_of("/".join(place.groups()), own_suffix, (*IMAGES, *LABELS) if by_type_alone else types)
        if key is not None and not (other == folder and other_suffix and not own_suffix and key_of(name, other_suffix)):
            found[key].append(path)
    if by_type_alone and found:
        return _without_twins(found, path_key == "images")
    if not found:
        raise InputError(explain_no_files(dataset, path_key, names, types))
    return found


def _split_pattern(folder: str) -> tuple[str, re.Pattern[str]]:
    """The folder above the first ``*`` of a path, and what the names of files below it look like."""
    parts = folder.split("/")
    first = next((index for index, part in enumerate(parts) if "*" in part), len(parts))
    middle = [re.escape(part).replace(r"\*", "[^/]*") for part in parts[first:]]
    pattern = "/".join([*(f"({part})" if "*" in given else part for part, given in zip(middle, parts[first:])), "(.+)"])
    return "/".join(parts[:first]), re.compile(pattern, flags=re.DOTALL)


def root_of(folder: str) -> str:
    """The part of a path before its first ``*``."""
    return _split_pattern(folder)[0]


def list_names(root: str) -> list[str]:
    """The names of all files below a folder or a part of an archive, sorted; those that begin with a dot are hidden."""
    if root.startswith(archives.PREFIX):
        names = [name for name in archives.list_members(root) if not name.startswith("__MACOSX/")]
    else:
        paths = (os.path.join(folder, name) for folder, _, of_folder in os.walk(root) for name in of_folder)
        names = [path[len(root) :].lstrip("/") for path in paths]
    return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))


def key_of(name: str, suffix: str, types: tuple[str, ...] = ()) -> str | None:
    """A file's name without its suffix; None: it does not end so, or is of no such type where there is no suffix.

    Args:
        name: with subfolders.
        suffix: with or without the type, such as _mask.png or _mask; a ``*`` in it stands for anything; "": the type.
        types: of files without a suffix of their own.
    """
    stem, type_ = os.path.splitext(name)
    if not suffix:
        return stem if type_.lower() in types else None
    any_type = "" if "." in suffix else r"\.[^./]+"
    ending = re.escape(suffix).replace(r"\*", "[^/]*")
    match = re.fullmatch(rf"(.*?[^/]){ending}{any_type}", name, flags=re.IGNORECASE | re.DOTALL)
    return None if match is None else match[1]


def _without_twins(found: Files, are_images: bool) -> Files:
    """Of images and labels in one folder, told apart by their types alone, a.jpg and a.png, the ones or the others."""
    twins = {key: paths for key, paths in found.items() if len(paths) > 1}
    chosen = {
        key: [path for path in paths if path.lower().endswith(PHOTOS) == are_images] for key, paths in twins.items()
    }
    return {**found, **chosen} if are_images else chosen


def one_of_each(dataset: OwnDataset, path_key: str, files: Files) -> dict[str, str]:
    """The only file of each key.

    Raises:
        InputError: there are two.
    """
    for paths in files.values():
        if len(paths) != 1:
            raise InputError(
                f"{dataset.key}.{path_key} has both {paths[0]} and {paths[1]}; expected one file of a name, and images "
                "and labels in folders apart, or told apart by label_suffix (_mask.png)."
            )
    return {key: paths[0] for key, paths in files.items()}


# --- lists ---


def read_list(dataset: OwnDataset) -> Iterator[tuple[int, str]]:
    """The lines of ``list`` that say something, with their numbers; UTF-8, or UTF-16 as Windows' shell writes it.

    Raises:
        InputError: it cannot be read, or holds nothing.
    """
    path = dataset.paths["list"]
    try:
        with PathManager.open(path, "rb") as file:
            content = file.read()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = content.decode("utf-16" if is_utf16 else "utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{dataset.key}.list is {path}, which cannot be read as text: {error}.") from error
    stripped = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    named = [(number, line) for number, line in stripped if line and not line.startswith("#")]
    if not named:
        raise InputError(f"{dataset.key}.list is {path}, which names no image; expected one in each line.")
    yield from named


class Names:
    """Finds files by their names, however much of their folders a list writes before them.

    Args:
        files: key -> path.
        root: the folder that names begin below.
    """

    def __init__(self, files: Mapping[str, str], root: str):
        self._key_of = {}
        for key, path in files.items():
            name = path[len(root) :].lstrip("/")
            self._key_of.update(dict.fromkeys((os.path.splitext(name)[0], name, key), key))

    def find(self, name: str, *, is_whole: bool = False) -> str | None:
        """The key of the file that a name, or its end unless it is whole, means; with or without its type."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        for known in (lambda tail: tail, lambda tail: os.path.splitext(tail)[0]):
            for start in range(min(1, len(parts)) if is_whole else len(parts)):
                key = self._key_of.get(known("/".join(parts[start:])))
                if key is not None:
                    return key
        return None


def _read_line(line: str, images: Names) -> tuple[str | None, str]:
    """The key of the image that a line means, and the name of its label; names may have spaces in them."""
    if (key := images.find(line, is_whole=True)) is not None:
        return key, ""
    for gap in re.finditer(r"\s*[\s,;]\s*", line):
        if (key := images.find(line[: gap.start()])) is not None:
            return key, line[gap.end() :]
    return images.find(line), ""


def choose(dataset: OwnDataset, images: Mapping[str, str]) -> list[tuple[str, str]]:
    """The images that ``list`` names.

    Args:
        dataset: with a list.
        images: key -> path, of all.

    Returns:
        Of each its key, and the name of its label as it is written behind; "" where there is none.

    Raises:
        InputError: an image is not there.
    """
    names = Names(images, root_of(dataset.paths["images"]))
    chosen: dict[str, str] = {}
    twice = 0
    for number, line in read_list(dataset):
        key, label = _read_line(line, names)
        if key is None:
            raise InputError(
                f"Line {number} of {dataset.paths['list']} ({dataset.key}.list) is {line!r}, which names no image in "
                f"{dataset.paths['images']}; expected names such as {next(iter(images), None)!r}, with or without "
                "folders and type, or pairs of an image and its label: correct list or images."
            )
        twice += key in chosen
        chosen.setdefault(key, "" if re.fullmatch(r"[\d\s]*", label) else label)  # numbers are of other tasks
    if twice:
        logger.warning("%d lines of %s name an image that stands before: it counts once.", twice, dataset.paths["list"])
    return list(chosen.items())


def label_names(dataset: OwnDataset) -> Names:
    """Finds the paths of all files in the folder of labels, whatever their suffix."""
    root = root_of(dataset.paths["labels"])
    paths = [f"{root}/{name}" for name in list_names(root) if os.path.splitext(name)[1].lower() in LABELS]
    return Names(dict(zip(paths, paths)), root)
