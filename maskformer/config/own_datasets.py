"""What a configuration's ``DATASETS.OWN`` says: a user's own datasets, one block each and no Python.

    DATASETS:
      OWN:
        garden:                        # its splits are garden_train and garden_val
          classes: [grass, path, pond]
          offset: 1                    # labels hold 1, 2, 3 ...
          ignore: 0                    # ... and 0 where nothing is labelled
          train: {images: train/images, labels: train/labels}
          val: {images: val/images, labels: val/labels}

A split is ``images`` with ``labels`` (a folder of label maps), ``instances`` (a COCO JSON), or ``panoptic`` (a JSON)
and ``panoptic_masks`` (its folder). Every mapping inside a dataset is a split. docs/own_data.md explains the keys.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from maskformer.structures import InputError, LabelValues, OwnDataset

_DATASET_KEYS = ("classes", "things", "colors", "offset", "ids", "ignore")
_PATH_KEYS = ("images", "labels", "instances", "panoptic", "panoptic_masks")
_KINDS = ({"images", "labels"}, {"images", "instances"}, {"images", "panoptic", "panoptic_masks"})
_DEFAULT_IGNORE = 255


def absolute_paths(block: Any, folder: str) -> Any:
    """Resolve the paths of a block, and make all its keys text.

    Args:
        block: the value of ``DATASETS.OWN``; what has another form is left for ``read_own_datasets`` to refuse.
        folder: what relative paths start from. ``~`` and ``$NAME`` stand for what they do in a shell.
    """
    if not isinstance(block, Mapping):
        return block
    resolved = {str(key): absolute_paths(value, folder) for key, value in block.items()}
    for key, path in resolved.items():
        if key in _PATH_KEYS and isinstance(path, str):
            path = os.path.join(os.path.abspath(folder), os.path.expanduser(os.path.expandvars(path)))
            resolved[key] = os.path.normpath(path)
    return resolved


def read_own_datasets(block: Any) -> list[OwnDataset]:
    """Check a block and make the datasets that it describes.

    Args:
        block: the value of ``DATASETS.OWN``, with absolute paths.

    Returns:
        Each split of each dataset, in the order of the block.

    Raises:
        InputError: a key is unknown or missing, or a value makes no sense. Files are not looked for.
    """
    if not isinstance(block, Mapping):
        raise InputError(f"DATASETS.OWN is {block!r}; expected the name of each dataset and what describes it.")
    found: dict[str, OwnDataset] = {}
    for name, content in block.items():
        for split in _read_dataset(f"DATASETS.OWN.{name}", name, content):
            if split.name in found:
                raise InputError(f"{found[split.name].key} and {split.key} would both be named {split.name}.")
            found[split.name] = split
    return list(found.values())


def _read_dataset(key: str, name: str, content: Any) -> list[OwnDataset]:
    if not isinstance(content, Mapping):
        raise InputError(f"{key} is {content!r}; expected classes and at least one split, such as train.")
    splits = {split: value for split, value in content.items() if isinstance(value, Mapping)}
    _check_keys(key, content.keys() - splits.keys(), _DATASET_KEYS)
    misspelt = [split for split in splits if split in (*_DATASET_KEYS, *_PATH_KEYS)]
    if misspelt:
        raise InputError(f"{key}.{misspelt[0]} is a mapping, which only a split, such as train or val, can be.")
    if not splits:
        raise InputError(f"{key} has no split; expected one at least, such as train: {{images: ..., labels: ...}}.")
    classes = _read_names(f"{key}.classes", content.get("classes"))
    paths = {split: _read_paths(f"{key}.{split}", value) for split, value in splits.items()}
    _check_use(key, content, paths.values())
    values = _read_values(key, content, classes)
    has_instances = any("instances" in given for given in paths.values())
    things = classes if has_instances else _read_things(key, content, classes)
    colors = _read_colors(f"{key}.colors", content.get("colors"), classes)
    return [
        OwnDataset(f"{name}_{split}", f"{key}.{split}", classes, colors, values, things, given)
        for split, given in paths.items()
    ]


def _check_keys(key: str, seen: Iterable[str], known: Iterable[str]) -> None:
    for name in sorted(set(seen) - set(known)):
        close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f" Close to it: {', '.join(close)}." if close else ""
        raise InputError(f"{key}.{name} does not exist; expected {', '.join(known)}.{hint}")


def _read_paths(key: str, split: Mapping[str, Any]) -> dict[str, str]:
    _check_keys(key, split.keys(), _PATH_KEYS)
    if set(split) not in _KINDS:
        kinds = ", or ".join(" + ".join(name for name in _PATH_KEYS if name in kind) for kind in _KINDS)
        raise InputError(f"{key} gives {', '.join(split) or 'nothing'}; expected {kinds}.")
    for name, path in split.items():
        if not isinstance(path, str) or not path:
            raise InputError(f"{key}.{name} is {path!r}; expected a path.")
    return dict(split)


def _check_use(key: str, content: Mapping[str, Any], splits: Iterable[dict[str, str]]) -> None:
    given = {name for paths in splits for name in paths}
    if "things" in content and "panoptic" not in given:
        raise InputError(f"{key}.things is for panoptic datasets; this one has none: remove it.")
    if "panoptic" in given and "things" not in content:
        raise InputError(f"{key}.things is missing; expected the names of the classes that are counted one by one.")
    if "panoptic" in given and "instances" in given:
        raise InputError(f"{key} has a panoptic split and one of instances; expected two datasets, of a name each.")
    if "ignore" in content and "labels" not in given:
        raise InputError(f"{key}.ignore is for label maps, and JSON annotates no pixel to ignore: remove it.")


def _read_names(key: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not names:
        raise InputError(f"{key} is {names!r}; expected a list of one class name at least.")
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"{key} holds {name!r}, which is no text: put the name in quotes.")
        if names.count(name) > 1:
            raise InputError(f"{key} names {name!r} {names.count(name)} times; expected different names.")
    return tuple(names)


def _read_things(key: str, content: Mapping[str, Any], classes: tuple[str, ...]) -> tuple[str, ...]:
    things = _read_names(f"{key}.things", content["things"]) if content.get("things", []) != [] else ()
    foreign = [name for name in things if name not in classes]
    if foreign:
        raise InputError(f"{key}.things names {foreign[0]!r}; expected only names in {key}.classes.")
    return things


def _read_values(key: str, content: Mapping[str, Any], classes: tuple[str, ...]) -> LabelValues:
    if "ids" in content and "offset" in content:
        raise InputError(f"{key} has both offset and ids; expected one: ids lists what offset counts.")
    offset = content.get("offset", 0)
    if not _is_integer(offset) or offset < 0:
        raise InputError(f"{key}.offset is {offset!r}; expected an integer from 0, the label of {classes[0]!r}.")
    ids = content.get("ids", list(range(offset, offset + len(classes))))
    if not isinstance(ids, list | tuple) or not all(_is_integer(i) and i >= 0 for i in ids) or len(set(ids)) < len(ids):
        raise InputError(f"{key}.ids is {ids!r}; expected different integers from 0, one of each class.")
    if len(ids) != len(classes):
        raise InputError(f"{key}.ids has {len(ids)} numbers but {key}.classes {len(classes)} names; expected as many.")
    return LabelValues(tuple(ids), _read_ignored(f"{key}.ignore", content, dict(zip(ids, classes, strict=True))))


def _read_ignored(key: str, content: Mapping[str, Any], class_of_value: dict[int, str]) -> tuple[int, ...]:
    if "ignore" not in content:
        return () if _DEFAULT_IGNORE in class_of_value else (_DEFAULT_IGNORE,)
    ignore = content["ignore"]
    ignored = tuple(ignore) if isinstance(ignore, list | tuple) else (ignore,)
    if not all(map(_is_integer, ignored)) or len(set(ignored)) < len(ignored):
        raise InputError(f"{key} is {ignore!r}; expected an integer or a list of different ones.")
    for value in ignored:
        if value in class_of_value:
            raise InputError(
                f"{key} is {value}, which is also the label of {class_of_value[value]!r}; expected another value, or "
                "an offset: 1 where labels of classes start at 1."
            )
    return ignored


def _read_colors(key: str, colors: Any, classes: tuple[str, ...]) -> tuple[tuple[int, ...], ...] | None:
    if colors is None:
        return None
    if not isinstance(colors, list | tuple) or len(colors) != len(classes):
        raise InputError(f"{key} is {colors!r}; expected a list of {len(classes)} colours, one of each class.")
    for color in colors:
        is_list = isinstance(color, list | tuple) and len(color) == 3
        if not is_list or not all(_is_integer(part) and 0 <= part <= 255 for part in color):
            raise InputError(f"{key} holds {color!r}; expected [red, green, blue], each 0..255.")
    return tuple(tuple(color) for color in colors)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
