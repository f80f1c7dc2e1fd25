"""What a configuration's ``DATASETS.OWN`` says: a user's own datasets, one block each and no Python.

    DATASETS:
      OWN:
        garden:                        # its splits are garden_train and garden_val
          classes: [grass, path, pond]
          offset: 1                    # labels hold 1, 2, 3 ...
          ignore: 0                    # ... and 0 where nothing is labelled
          images: pictures             # what stands here holds for every split
          labels: pictures
          label_suffix: _mask.png      # the label of a.jpg is a_mask.png
          train: {list: train.txt}
          val: {list: val.txt}

A split is ``images`` with ``labels`` (a folder of label maps), ``objects`` (a folder of masks of single objects),
``instances`` (a COCO JSON), or ``panoptic`` (a JSON) and ``panoptic_masks`` (its folder). Every mapping inside a
dataset is a split. What is not given of ``classes``, ``ids`` and ``things`` is read from a JSON, and what is given is
compared with it. Folders may be in a zip: ``data.zip/train``. docs/own_data.md explains the keys.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from maskformer.structures import InputError, LabelValues, OwnDataset

from .bands import read_bands
from .coco_categories import Category, is_there, read_categories

_DATASET_KEYS = ("classes", "things", "colors", "offset", "ids", "ignore", "palette_colors")
_PATH_KEYS = ("images", "labels", "objects", "instances", "panoptic", "panoptic_masks", "list")
_SPLIT_KEYS = (*_PATH_KEYS, "image_suffix", "label_suffix", "bands", "range")  # a dataset's are those of its splits
_KINDS = (
    {"images", "labels"},
    {"images", "instances"},
    {"images", "panoptic", "panoptic_masks"},
    {"images", "objects"},
)
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


def complete_classes(block: Mapping[str, Any], datasets: Iterable[OwnDataset]) -> dict[str, Any]:
    """Write what was read from the JSONs of a block into it, so that it describes its classes without them.

    Args:
        block: the value of ``DATASETS.OWN``.
        datasets: what ``read_own_datasets`` made of it.
    """
    completed = {name: dict(content) for name, content in block.items()}
    for dataset in datasets:
        content = completed[dataset.key.rpartition(".")[0].removeprefix("DATASETS.OWN.")]
        if not {"instances", "panoptic"} & dataset.paths.keys():
            continue
        content.setdefault("classes", list(dataset.classes))
        if "offset" not in content:
            content.setdefault("ids", list(dataset.values.of_classes))
        if "panoptic" in dataset.paths:
            content.setdefault("things", list(dataset.things))
    return completed


def _read_dataset(key: str, name: str, content: Any) -> list[OwnDataset]:
    if not isinstance(content, Mapping):
        raise InputError(f"{key} is {content!r}; expected classes and at least one split, such as train.")
    splits = {split: value for split, value in content.items() if isinstance(value, Mapping)}
    _check_keys(key, content.keys() - splits.keys(), (*_DATASET_KEYS, *_SPLIT_KEYS))
    misspelt = [split for split in splits if split in (*_DATASET_KEYS, *_SPLIT_KEYS)]
    if misspelt:
        raise InputError(f"{key}.{misspelt[0]} is a mapping, which only a split, such as train or val, can be.")
    if not splits:
        raise InputError(f"{key} has no split; expected one at least, such as train: {{images: ..., labels: ...}}.")
    for split, value in splits.items():
        _check_keys(f"{key}.{split}", value.keys(), _SPLIT_KEYS)
    common = {option: value for option, value in content.items() if option in _SPLIT_KEYS}
    splits = {split: {**common, **value} for split, value in splits.items()}
    paths = {split: _read_paths(f"{key}.{split}", value) for split, value in splits.items()}
    _check_use(key, content, paths.values())
    content = _complete(key, content, paths)
    classes = _read_names(f"{key}.classes", content.get("classes"))
    has_objects = any({"instances", "objects"} & given.keys() for given in paths.values())
    things = classes if has_objects else _read_things(key, content, classes)
    colors = _read_colors(f"{key}.colors", content.get("colors"), classes)
    values = _read_values(key, content, classes, colors)
    if any("objects" in given for given in paths.values()):
        values = _check_objects(key, content, values)
    return [
        OwnDataset(
            *(f"{name}_{split}", f"{key}.{split}", classes, colors, values, things, given),
            image_suffix=_read_suffix(f"{key}.{split}.image_suffix", splits[split].get("image_suffix", "")),
            label_suffix=_read_suffix(f"{key}.{split}.label_suffix", splits[split].get("label_suffix", "")),
            bands=read_bands(f"{key}.{split}", splits[split]),
        )
        for split, given in paths.items()
    ]


def _complete(key: str, content: Mapping[str, Any], paths: Mapping[str, dict[str, str]]) -> Mapping[str, Any]:
    """Add the classes, ids and things of the first split's JSON, as far as they are not given."""
    known = {"classes", "things"} if any("panoptic" in given for given in paths.values()) else {"classes"}
    if known <= content.keys() and {"offset", "ids"} & content.keys():
        return content
    json_files = [
        (given[kind], f"{key}.{split}.{kind}")
        for split, given in paths.items()
        for kind in ("instances", "panoptic")
        if kind in given
    ]
    if "classes" in content:
        json_files = [each for each in json_files if is_there(each[0])]  # else it is missed where it is needed
    categories = read_categories(*json_files[0]) if json_files else []
    completed = {**({"classes": [category.name for category in categories]} if categories else {}), **content}
    if not {"offset", "ids"} & content.keys():
        completed.update(_ids_of(completed.get("classes"), categories))
    if categories and all(category.is_thing is not None for category in categories):
        completed = {"things": [category.name for category in categories if category.is_thing], **completed}
    if known - completed.keys() == {"things"}:
        raise InputError(f"{key}.things is missing; expected the names of the classes that are counted one by one.")
    return completed


def _ids_of(classes: Any, categories: list[Category]) -> dict[str, list[int]]:
    """The ``ids`` of classes that all have one."""
    ids = {category.name: category.id for category in categories}
    are_known = isinstance(classes, list | tuple) and all(isinstance(name, str) and name in ids for name in classes)
    return {"ids": [ids[name] for name in classes]} if are_known and len(ids) == len(categories) else {}


def _check_objects(key: str, content: Mapping[str, Any], values: LabelValues) -> LabelValues:
    """Refuse what masks of single objects do not say; every value but 0 and those of ``ignore`` is an object."""
    useless = [option for option in ("offset", "ids", "palette_colors") if option in content]
    if useless:
        raise InputError(f"{key}.{useless[0]} has no effect on masks of single objects: remove it.")
    if len(values.of_classes) > 1:
        raise InputError(
            f"{key}.classes names {len(values.of_classes)} classes, but masks of single objects (objects) do not say "
            "which; expected one: make a dataset of each class, or a COCO JSON (instances)."
        )
    return replace(values, ignored=values.ignored if "ignore" in content else ())


def _check_keys(key: str, seen: Iterable[str], known: Iterable[str]) -> None:
    for name in sorted(set(seen) - set(known)):
        close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f" Close to it: {', '.join(close)}." if close else ""
        raise InputError(f"{key}.{name} does not exist; expected {', '.join(known)}.{hint}")


def _read_paths(key: str, split: Mapping[str, Any]) -> dict[str, str]:
    paths = {name: value for name, value in split.items() if name in _PATH_KEYS}
    if paths.keys() - {"list"} not in _KINDS:
        kinds = ", or ".join(" + ".join(name for name in _PATH_KEYS if name in kind) for kind in _KINDS)
        raise InputError(f"{key} gives {', '.join(paths) or 'nothing'}; expected {kinds}.")
    for name, path in paths.items():
        if not isinstance(path, str) or not path:
            raise InputError(f"{key}.{name} is {path!r}; expected a path.")
    useless = [
        name for name in ("image_suffix", "label_suffix") if name in split and not {"labels", "objects"} & paths.keys()
    ]
    if useless:
        raise InputError(f"{key}.{useless[0]} has no effect beside a JSON, which names its files: remove it.")
    return {name: _in_archive(path) for name, path in paths.items()}


def _in_archive(path: str) -> str:
    """A path as ``PathManager`` opens it: "zip://" before one that leads into a zip."""
    is_archived = re.search(r"\.zip(/|$)", path, flags=re.IGNORECASE) and not os.path.isdir(path)
    return f"zip://{path}" if is_archived else path


def _read_suffix(key: str, suffix: Any) -> str:
    if not isinstance(suffix, str) or "/" in suffix:
        raise InputError(f"{key} is {suffix!r}; expected how the files' names end, such as _mask.png.")
    return suffix


def _check_use(key: str, content: Mapping[str, Any], splits: Iterable[dict[str, str]]) -> None:
    given = {name for paths in splits for name in paths}
    if "things" in content and "panoptic" not in given:
        raise InputError(f"{key}.things is for panoptic datasets; this one has none: remove it.")
    if "panoptic" in given and {"instances", "objects"} & given:
        raise InputError(f"{key} has a panoptic split and one of instances; expected two datasets, of a name each.")
    if "ignore" in content and not {"labels", "objects"} & given:
        raise InputError(f"{key}.ignore is for label maps, and JSON annotates no pixel to ignore: remove it.")
    if "objects" in given and given & {"labels", "instances"}:
        raise InputError(f"{key} has a split of objects and one of another kind; expected two datasets.")
    if "palette_colors" in content and ("colors" not in content or not isinstance(content["palette_colors"], bool)):
        raise InputError(
            f"{key}.palette_colors is {content['palette_colors']!r}; expected true where labels with a palette mean "
            "its colours, with colors, the colour of each class, beside it."
        )


def _read_names(key: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not names:
        state = "missing" if names is None else repr(names)
        raise InputError(f"{key} is {state}; expected a list of one class name at least.")
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


def _read_values(
    key: str, content: Mapping[str, Any], classes: tuple[str, ...], colors: tuple[tuple[int, ...], ...] | None
) -> LabelValues:
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
    class_of_value = dict(zip(ids, classes, strict=True))
    default = () if _DEFAULT_IGNORE in class_of_value else (_DEFAULT_IGNORE,)
    ignore = content.get("ignore", default)
    ignored = list(ignore) if isinstance(ignore, list | tuple) else [ignore]
    ignored_colors = [color for color in ignored if isinstance(color, list | tuple)]
    ignored = [value for value in ignored if value not in ignored_colors] or (list(default) if ignored_colors else [])
    _check_ignored(f"{key}.ignore", ignored, class_of_value)
    return LabelValues(
        *(tuple(ids), tuple(ignored), colors or ()),
        _read_ignored_colors(key, ignored_colors, colors),
        content.get("palette_colors", False),
    )


def _check_ignored(key: str, ignored: list[Any], class_of_value: dict[int, str]) -> None:
    if not all(map(_is_integer, ignored)) or len(set(ignored)) < len(ignored):
        raise InputError(
            f"{key} is {ignored[0] if len(ignored) == 1 else ignored!r}; expected an integer or a list of different "
            "ones, or of colours: [[0, 0, 0]]."
        )
    for value in ignored:
        if value in class_of_value:
            raise InputError(
                f"{key} is {value}, which is also the label of {class_of_value[value]!r}; expected another value, or "
                "an offset: 1 where labels of classes start at 1."
            )


def _read_colors(key: str, colors: Any, classes: tuple[str, ...]) -> tuple[tuple[int, ...], ...] | None:
    if colors is None:
        return None
    if not isinstance(colors, list | tuple) or len(colors) != len(classes):
        raise InputError(f"{key} is {colors!r}; expected a list of {len(classes)} colours, one of each class.")
    return _check_colors(key, colors)


def _check_colors(key: str, colors: Iterable[Any]) -> tuple[tuple[int, ...], ...]:
    for color in colors:
        is_list = isinstance(color, list | tuple) and len(color) == 3
        if not is_list or not all(_is_integer(part) and 0 <= part <= 255 for part in color):
            raise InputError(f"{key} holds {color!r}; expected [red, green, blue], each 0..255.")
    return tuple(tuple(color) for color in colors)


def _read_ignored_colors(
    key: str, ignored: list[Any], colors: tuple[tuple[int, ...], ...] | None
) -> tuple[tuple[int, ...], ...]:
    if ignored and colors is None:
        raise InputError(
            f"{key}.ignore names the colour {ignored[0]}; expected colors, those of the classes, beside it."
        )
    found = _check_colors(f"{key}.ignore", ignored)
    both = [color for color in found if color in (colors or ())]
    if both:
        raise InputError(f"{key}.ignore names the colour {list(both[0])}, which is a class's in {key}.colors.")
    return found


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
