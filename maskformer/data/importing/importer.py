"""Writes a source as a dataset that training reads, and counts what is lost on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pycocotools.mask as rle

from maskformer.structures import BadImageError, InputError, printable

from . import target
from .outlines import UNKNOWN_CLASS
from .source import BACKGROUNDS, EVALUATION, TRAINING, Annotated, Entry, Losses, Size, Source, read_size
from .target import Record

LEFT_OUT = "pictures left out"
OVERLAPS = "pixels in several objects, of which the last drawn has them"
FOREIGN = "pixels of a value that no class has, now ignored"
NO_INSTANCE = "regions of background, or to ignore, which are no instances"
_DEFAULT_IGNORE = 255
# Names of splits that would be keys of the dataset.
_RESERVED = {"classes", "things", "colors", "offset", "ids", "ignore", "bands", "list"}
_RESERVED |= {"images", "labels", "label_suffix", "instances", "panoptic", "panoptic_masks"}


@dataclass
class Summary:
    """What was written.

    Attributes:
        form: "instances" or "labels".
        pictures: how many, of each split.
        classes: K names.
        objects: how many.
        left_out: a sentence for each picture that is not there.
    """

    form: str
    pictures: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    objects: int = 0
    left_out: list[str] = field(default_factory=list)


def write_dataset(
    source: Source,
    folder: Path,
    *,
    name: str,
    base: str,
    form: str | None = None,
    val_share: float = 0.1,
    background: bool = True,
    losses: Losses,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Summary:
    """Write pictures, labels and ``dataset.yaml`` into a folder.

    Args:
        source: what a reader gave.
        folder: exists and is empty.
        name: of the dataset.
        base: configuration of the model.
        form: "instances" or "labels"; None: what the source holds rather.
        val_share: of the training pictures, which become a split ``val`` if the source has none to evaluate on.
        background: in label maps, whether pixels of no object are a class, or are ignored.
        losses: counts on.
        progress: gives the pictures that it gets, and shows how far they are.

    Raises:
        InputError: the source cannot have this form, or no picture of it can be used.
    """
    summary = Summary(form or source.form)
    if source.has_label_maps and summary.form == "instances":
        raise InputError("The source holds label maps, which do not part instances; expected --as labels.")
    if summary.form == "labels" and not source.has_label_maps:
        writer: _Writer = _LabelMaps(source, folder, losses, background=background)
    else:
        writer = _RawMaps(source, folder, losses) if source.has_label_maps else _Instances(source, folder, losses)
    named: dict[str, list[Entry]] = {}
    for split, entries in source.splits.items():
        named.setdefault(_split_name(split), []).extend(_without_common_folder(entries))
    splits = share_out(named, val_share)
    for split, entry in progress([(split, entry) for split, entries in splits.items() for entry in entries]):
        try:
            picture = entry.picture()
            annotated = entry.annotate(size := read_size(picture, entry.where))
        except BadImageError as error:
            losses.add(LEFT_OUT, entry.where)
            summary.left_out.append(str(error))
            continue
        summary.objects += writer.add(split, entry, size, annotated)
        target.place_picture(picture, folder / "images" / split / writer.name_of(split, entry))
        summary.pictures[split] = summary.pictures.get(split, 0) + 1
    if not summary.pictures:
        first = f"; the first of them: {summary.left_out[0]}" if summary.left_out else ""
        raise InputError(f"None of {sum(map(len, splits.values()))} pictures can be used{first}")
    block = writer.finish(list(summary.pictures))
    summary.classes = tuple(block["classes"])
    target.write_configuration(folder, name, base=base, block=block, more=_roles(name, list(summary.pictures)))
    return summary


def share_out(splits: dict[str, list[Entry]], val_share: float) -> dict[str, list[Entry]]:
    """Take a share of the pictures to evaluate on, chosen by their names, where no split is meant for it."""
    splits = {split: entries for split, entries in splits.items() if entries}
    if val_share <= 0 or any(split.lower() in EVALUATION for split in splits):
        return splits
    taken: list[Entry] = []
    for split, entries in splits.items():
        ranked = sorted(entries, key=lambda entry: hashlib.sha256(entry.name.encode(errors="replace")).digest())
        number = max(round(len(entries) * val_share), 1) if len(entries) > 1 else 0
        chosen = {id(entry) for entry in ranked[:number]}
        prefix = f"{split}/" if len(splits) > 1 else ""
        taken += [replace(entry, name=prefix + entry.name) for entry in entries if id(entry) in chosen]
        splits[split] = [entry for entry in entries if id(entry) not in chosen]
    return {**splits, "val": taken} if taken else splits


def _without_common_folder(entries: list[Entry]) -> list[Entry]:
    folders = [PurePosixPath(entry.name).parent for entry in entries]
    common = os.path.commonpath(folders) if folders else ""
    return [replace(entry, name=os.path.relpath(entry.name, common or ".")) for entry in entries]


def _split_name(name: str) -> str:
    plain = target.plain_name(name, "train")
    return f"{plain}_split" if plain in _RESERVED else plain


def _roles(name: str, splits: list[str]) -> Record:
    """Which splits are for training, and which one is for evaluation: what they are called says it."""
    evaluated = [split for role in EVALUATION for split in splits if split.lower() == role][:1]
    training = [split for split in splits if split.lower() in TRAINING]
    training = training or [split for split in splits if split.lower() not in EVALUATION] or evaluated
    of = {"TRAIN": training, "TEST": evaluated}
    return {"DATASETS": {key: [f"{name}_{split}" for split in chosen] for key, chosen in of.items()}}


def _require_classes(classes: tuple[str, ...]) -> None:
    if not classes:
        raise InputError("The source has no class; expected one at least: annotate something, and export again.")


class _Writer:
    """Writes the labels of pictures, and then says what the dataset is; pictures get names that differ."""

    def __init__(self, source: Source, folder: Path, losses: Losses):
        self.classes = tuple(dict.fromkeys(printable(name) for name in source.classes))
        self.folder, self.losses = folder, losses
        self._names: dict[tuple[str, str], Entry] = {}
        self._name_of: dict[int, str] = {}

    def add(self, split: str, entry: Entry, size: Size, annotated: Any) -> int:
        """Write the labels of a picture; how many objects it has."""
        raise NotImplementedError

    def finish(self, splits: list[str]) -> Record:
        """Write what is left, and describe the dataset as ``DATASETS.OWN`` does."""
        raise NotImplementedError

    def name_of(self, split: str, entry: Entry) -> str:
        """The name of a picture in the split's folder: no two agree but for the ending."""
        if id(entry) not in self._name_of:
            path = PurePosixPath(entry.name)
            stem, number = path.with_suffix(""), 1
            while (split, str(stem)) in self._names:
                number += 1
                stem = path.with_name(f"{path.stem}_{path.suffix[1:]}" + (f"_{number}" if number > 2 else ""))
            self._names[split, str(stem)] = entry
            self._name_of[id(entry)] = f"{stem}{path.suffix}"
        return self._name_of[id(entry)]

    def index(self, name: str, where: str) -> int | None:
        """The number of a class; one that is none is counted."""
        name = printable(name)
        if name in self.classes:
            return self.classes.index(name)
        self.losses.add(UNKNOWN_CLASS, where)
        return None


class _Instances(_Writer):
    """COCO's instance JSON for each split."""

    def __init__(self, source: Source, folder: Path, losses: Losses):
        super().__init__(source, folder, losses)
        self.classes = tuple(name for name in self.classes if name.lower() not in BACKGROUNDS)
        _require_classes(self.classes)
        self._coco: dict[str, target.CocoInstances] = {}

    def add(self, split: str, entry: Entry, size: Size, annotated: list[Annotated]) -> int:
        coco = self._coco.setdefault(split, target.CocoInstances(self.classes))
        coco.add_picture(self.name_of(split, entry), size)
        written = 0
        for each in annotated:
            if each.name is None or each.name.lower() in BACKGROUNDS:
                self.losses.add(NO_INSTANCE, entry.where)
            elif (index := self.index(each.name, entry.where)) is not None:
                coco.add_object(index, each.segmentation)
                written += 1
        return written

    def finish(self, splits: list[str]) -> Record:
        for split in splits:
            target.write_json(self.folder / f"{split}.json", self._coco[split].content)
        paths = {split: {"images": f"images/{split}", "instances": f"{split}.json"} for split in splits}
        return {"classes": list(self.classes), "offset": target.FIRST_ID, **paths}


class _Maps(_Writer):
    """A label map for each picture."""

    def _write(self, split: str, entry: Entry, label_map: np.ndarray) -> None:
        name = PurePosixPath(self.name_of(split, entry)).with_suffix(".png")
        target.write_label_map(self.folder / "labels" / split / name, label_map)

    def _paths(self, splits: list[str]) -> Record:
        return {split: {"images": f"images/{split}", "labels": f"labels/{split}"} for split in splits}


class _LabelMaps(_Maps):
    """Label maps that are drawn, object after object."""

    def __init__(self, source: Source, folder: Path, losses: Losses, *, background: bool):
        super().__init__(source, folder, losses)
        named = next((name for name in self.classes if name.lower() in BACKGROUNDS), None)
        if background and named is None:
            named = BACKGROUNDS[0]
            self.classes = (named, *self.classes)
        self._background = named if background else None
        _require_classes(self.classes)

    def add(self, split: str, entry: Entry, size: Size, annotated: list[Annotated]) -> int:
        ignored = target.ignore_value(len(self.classes))
        empty = ignored if self._background is None else self.classes.index(self._background)
        label_map = np.full(size, empty, dtype=np.uint8 if ignored == 255 else np.uint16)
        is_drawn, written = np.zeros(size, dtype=bool), 0
        for each in annotated:
            value = ignored if each.name is None else self.index(each.name, entry.where)
            if value is None:
                continue
            mask = rle.decode(target.to_rle(each.segmentation, size)).astype(bool)
            changed = mask & is_drawn & (label_map != value)
            self.losses.add(OVERLAPS, entry.where, int(changed.sum()))
            label_map[mask] = value
            is_drawn |= mask
            written += 1
        self._write(split, entry, label_map)
        return written

    def finish(self, splits: list[str]) -> Record:
        ignored = target.ignore_value(len(self.classes))
        return {"classes": list(self.classes), "ignore": ignored, **self._paths(splits)}


class _RawMaps(_Maps):
    """Label maps as the source has them."""

    def __init__(self, source: Source, folder: Path, losses: Losses):
        super().__init__(source, folder, losses)
        self._ids, self._seen = source.ids, set[int]()

    def add(self, split: str, entry: Entry, _: Size, annotated: np.ndarray) -> int:
        label_map = annotated.astype(np.uint16 if annotated.max(initial=0) > 255 else np.uint8)
        if self._ids:
            foreign = ~np.isin(label_map, [*self._ids, _DEFAULT_IGNORE])
            self.losses.add(FOREIGN, entry.where, int(foreign.sum()))
            label_map[foreign] = _DEFAULT_IGNORE
        values = set(np.unique(label_map).tolist()) - {_DEFAULT_IGNORE}
        self._seen |= values
        self._write(split, entry, label_map)
        return len(values)

    def finish(self, splits: list[str]) -> Record:
        ids = list(self._ids) or sorted(self._seen)
        names = self.classes or tuple(f"class {value}" for value in ids)
        ignore = {} if _DEFAULT_IGNORE in ids else {"ignore": _DEFAULT_IGNORE}
        return {"classes": list(names), "ids": ids, **ignore, **self._paths(splits)}
