"""What to write where the files of a user's own dataset are not where, or not what, its block says."""

from __future__ import annotations

import bisect
import difflib
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from maskformer.structures import OwnDataset

from ..files import archives

_LOOKED_AT = 200  # files, evenly spread
_IMPORT = "python -m maskformer.tools.import_dataset --from"
_PROGRAMS = {".txt": "yolo-seg", ".json": "labelme", ".xml": "cvat-xml"}
_OF_FILES = {
    ".json": "name a COCO JSON as instances or panoptic",
    ".txt": "name a list of images as list",
    ".csv": "name a list of images as list",
    **dict.fromkeys(
        (".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"), "unpack it, for of archives zip alone is read"
    ),
}


def explain_missing_folder(key: str, folder: str) -> str:
    """What stands beside a folder that does not exist."""
    file = next((path for path in map(str, (Path(folder), *Path(folder).parents)) if os.path.isfile(path)), None)
    if file is not None:
        remedy = _OF_FILES.get(os.path.splitext(file)[1].lower(), "correct the path")
        return f"{key} is {folder}, but {file} is no folder but a file: {remedy}."
    parent = os.path.dirname(folder)
    while parent and not os.path.isdir(parent) and os.path.dirname(parent) != parent:
        parent = os.path.dirname(parent)
    beside = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir()) if os.path.isdir(parent) else []
    wanted = folder[len(parent) :].strip("/").split("/")[0]
    close = difflib.get_close_matches(wanted, beside, n=3, cutoff=0.5) or beside[:5]
    there = f" {parent} has the folders {', '.join(close)}." if close else ""
    return f"{key} is {folder}, which is no folder; correct the path.{there}"


def explain_no_files(dataset: OwnDataset, path_key: str, names: Sequence[str], types: Collection[str]) -> str:
    """Why a folder with these files has none of the wanted ones, as far as they tell it."""
    where = f"{dataset.key}.{path_key} is {dataset.paths[path_key]}, which holds no file"
    if not names and dataset.paths[path_key].startswith(archives.PREFIX):
        return where + _explain_archive(dataset.paths[path_key])
    suffix = dataset.image_suffix if path_key == "images" else dataset.label_suffix
    if suffix and names:
        option = "image_suffix" if path_key == "images" else "label_suffix"
        return f"{where} whose name ends in {suffix}; names are like {names[0]}: correct {option}."
    kinds = Counter(os.path.splitext(name)[1].lower() for name in names)
    seen = ", ".join(f"{count} {kind or 'without a type'}" for kind, count in kinds.most_common(3)) or "nothing"
    kind = kinds.most_common(1)[0][0] if kinds else ""
    remedy = ""
    if path_key != "images" and kind in _PROGRAMS:
        remedy = _explain_import(kind)
    elif path_key != "images" and kind in (".jpg", ".jpeg"):
        remedy = " JPEG changes the values of labels: write them anew as PNG, or name their folder."
    return f"{where} of the types {', '.join(sorted(types))}; it holds {seen}.{remedy}"


def _explain_import(kind: str) -> str:
    return f" Files of other programs are made labels by {_IMPORT} {_PROGRAMS[kind]} SOURCE TARGET."


def _explain_archive(path: str) -> str:
    archive, inside = archives.split_address(path)
    folders = sorted({name.rpartition("/")[0] for name in archives.list_members(archive)} - {""})
    alike = [folder for folder in folders if folder.endswith(f"/{inside}")]
    shown = ", ".join(alike or difflib.get_close_matches(inside, folders, n=3, cutoff=0.5) or folders[:5])
    return f"; {archive} has the folders {shown or 'of none'}: correct the path behind it."


def explain_missing_labels(dataset: OwnDataset, images: Sequence[str], labels: Sequence[str]) -> str:
    """What would pair images with labels, where none has one; "" where nothing is seen.

    Args:
        dataset: with the folders ``images`` and ``labels`` (or ``objects``).
        images: names of the images, below their folder.
        labels: names of all labels, below theirs.
    """
    label_key = "labels" if "labels" in dataset.paths else "objects"
    chosen = images[:: max(1, len(images) // _LOOKED_AT)]
    in_order, by_end = sorted(labels), {_stem(label).rpartition("/")[2]: _stem(label) for label in labels}
    suffixes = Counter(filter(None, (_differing_ends(image, in_order) for image in chosen)))
    folders = Counter(filter(None, (_differing_heads(image, by_end) for image in chosen)))
    (best, count), *_ = [*(suffixes | folders).most_common(1), (None, 0)]
    if best is None or 2 * count < len(chosen):
        stems = set(map(_stem, images))
        kinds = Counter(end for stem, end in map(os.path.splitext, labels) if end in _PROGRAMS and stem in stems)
        return _explain_import(kinds.most_common(1)[0][0]) if kinds else ""
    if best in folders:
        head, other_head = best
        wrong, at = ("images", head) if head else (label_key, other_head)
        return f" {wrong.capitalize()} are in {at}: write {wrong}: {dataset.paths[wrong]}/{at}."
    image_end, label_end = best
    example = next(image for image in chosen if _differing_ends(image, in_order) == best)
    options = [] if image_end.startswith(".") else [f"image_suffix: {image_end}"]
    options += [] if label_end.startswith(".") else [f"label_suffix: {label_end}"]
    start = example[: len(example) - len(image_end)]
    return f" The label of {example} seems to be {start}{label_end}: add {' and '.join(options)}."


def _differing_ends(image: str, labels: list[str]) -> tuple[str, str] | None:
    """How an image and the label most like it end, where both begin alike."""
    place = bisect.bisect(labels, _stem(image))
    best = None
    for label in labels[max(0, place - 2) : place + 2]:
        pairs = zip(image, label)
        start = next(
            (index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(image), len(label))
        )
        while start and not _may_divide(image, label, start):
            start -= 1
        ends = image[start:], label[start:]
        if start and image != label and "/" not in "".join(ends) and (best is None or start > best[0]):
            best = start, ends
    return best[1] if best and not (best[1][0].startswith(".") and best[1][1].startswith(".")) else None


def _may_divide(image: str, label: str, start: int) -> bool:
    """Whether both names are divided there: at the type of one, or at a sign that divides words in both."""
    ends = image[start:], label[start:]
    if all(re.fullmatch(r"[-_. ]?\d+\.\w+", end) for end in ends):  # the numbers of two pictures
        return False
    return any(re.fullmatch(r"\.\w+", end) for end in ends) or all(re.match(r"[-_. ]", end) for end in ends)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _differing_heads(image: str, labels: dict[str, str]) -> tuple[str, str] | None:
    """The folders before an image and the label of its name, as far as they differ; one of them has none."""
    stem = _stem(image)
    label = labels.get(stem.rpartition("/")[2])
    if label is None or label == stem:
        return None
    if stem.endswith(f"/{label}"):
        return stem[: -len(label) - 1], ""
    return ("", label[: -len(stem) - 1]) if label.endswith(f"/{stem}") else None


def explain_missing_image(images: str, file_name: str, names: Sequence[str]) -> str:
    """Where an image that a JSON names lies instead; "" where it does not."""
    wanted = file_name.replace("\\", "/")
    found = next((name for name in names if name.endswith(f"/{wanted}") or wanted.endswith(f"/{name}")), None)
    if found is None:
        close = difflib.get_close_matches(wanted, names[:1000], n=1)
        return f" {images} holds {len(names)} files, such as {(close or [*names, 'none'])[0]}."
    if found.endswith(f"/{wanted}"):
        return f" It is in {images}/{found[: -len(wanted) - 1]}: write images: {images}/{found[: -len(wanted) - 1]}."
    head = wanted[: -len(found) - 1]
    above = f"write images: {images[: -len(head) - 1]}" if images.endswith(f"/{head}") else "correct the JSON's names"
    return f" {found} lies in {images}, without {head}: {above}."
