"""What datasets say of their classes: which they are, which of them are things, and whether two datasets agree.

Detectron2's metadata is a catalog in which every look-up succeeds: an entry that nobody made is empty, and a key that
nobody set has whatever default the reader thinks of. Here, what is not there is None, or an ``InputError``.
"""

from __future__ import annotations

import contextlib
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from maskformer.structures import Classes, InputError

from ..checks.verification import LOADING_ERRORS
from . import register_missing

DEFAULT_IGNORE_LABEL = 255  # Detectron2's, of MODEL.SEM_SEG_HEAD.IGNORE_VALUE
_OF_THINGS = ("coco", "cityscapes_instance")  # evaluator types of datasets whose labels count things alone


def resolve_classes(cfg: CfgNode) -> Classes | None:
    """What the datasets of a configuration say of its model's classes; ``DATASETS.TRAIN`` comes first.

    Datasets that nobody has registered yet are registered, as far as they are known here.

    Returns:
        None: no dataset is known here, or none has as many classes.

    Raises:
        InputError: see ``register_missing``.
    """
    register_missing(cfg.DATASETS.OWN)
    found: Classes | None = None
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = read_classes(name, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        if found is None:
            found = classes
        elif classes is not None and not found.difference(classes):
            found = found.completed_by(classes)
    return found


def read_classes(name: str, num_classes: int) -> Classes | None:
    """What a dataset says of the classes of a model that has so many; None: it says nothing of so many.

    Args:
        name: of a dataset; it need not be registered, or may have metadata alone.
        num_classes: K. Datasets may have lists for things and for all classes, of which the one of that length counts.
    """
    metadata = _known_metadata(name)
    if metadata is None:
        return None
    kinds = ("thing", "stuff") if metadata.get("evaluator_type") in _OF_THINGS else ("stuff", "thing")
    kind = next((kind for kind in kinds if len(metadata.get(f"{kind}_classes") or ()) == num_classes), None)
    if kind is None:
        return None
    names = tuple(map(str, metadata.get(f"{kind}_classes")))
    colors = metadata.get(f"{kind}_colors")
    return Classes(
        source=f"dataset {name}",
        names=names,
        things=_read_things(metadata, kind, names),
        ids=_read_ids(metadata, kind, num_classes),
        colors=tuple(tuple(map(int, color)) for color in colors) if len(colors or ()) == num_classes else None,
    )


def _known_metadata(name: str) -> Metadata | None:
    """The metadata of a dataset, which Detectron2 completes for some when it reads their JSON."""
    if name not in MetadataCatalog.list():
        return None
    metadata = MetadataCatalog.get(name)
    if _has_names(metadata) or name not in DatasetCatalog or not metadata.get("json_file"):
        return metadata
    with contextlib.suppress(*LOADING_ERRORS):  # whoever needs its entries says what is wrong
        DatasetCatalog.get(name)
    return metadata


def _has_names(metadata: Metadata) -> bool:
    return bool(metadata.get("stuff_classes") or metadata.get("thing_classes"))


def _read_things(metadata: Metadata, kind: str, names: tuple[str, ...]) -> frozenset[int] | None:
    class_of_id = metadata.get("thing_dataset_id_to_contiguous_id")
    if class_of_id is None:
        return frozenset(range(len(names))) if kind == "thing" else None
    things, thing_names = frozenset(class_of_id.values()), metadata.get("thing_classes")
    if not all(0 <= index < len(names) for index in things):
        return None
    # Some datasets number things and stuff apart: then these numbers are of other classes.
    are_these = not thing_names or {names[index] for index in things} <= set(map(str, thing_names))
    return things if are_these else None


def _read_ids(metadata: Metadata, kind: str, num_classes: int) -> tuple[int, ...] | None:
    ids = {}
    for of_kind in ("stuff", "thing") if kind == "stuff" else ("thing",):
        class_of_id = metadata.get(f"{of_kind}_dataset_id_to_contiguous_id") or {}
        ids.update({index: int(number) for number, index in class_of_id.items()})
    return tuple(ids[index] for index in range(num_classes)) if ids.keys() == set(range(num_classes)) else None


def check_classes(name: str, config_key: str, num_classes: int, classes: Classes | None) -> None:
    """Make sure that a dataset numbers its classes as a model does.

    A dataset of things alone may be judged by a model that has these things first. How many classes there are is
    ``verify_dataset``'s to compare.

    Args:
        name: of the dataset; nothing is checked of one that is not known here or names no classes.
        config_key: where the user gave it, for messages.
        num_classes: K, the model's.
        classes: the model's; None: not known.

    Raises:
        InputError: names or order of classes differ.
    """
    metadata = _known_metadata(name)
    if metadata is None or classes is None:
        return
    things = metadata.get("thing_classes")
    of_things = not metadata.get("stuff_classes") or metadata.get("evaluator_type") in _OF_THINGS
    if of_things and 0 < len(things or ()) <= num_classes:  # labels and evaluators number things among themselves
        theirs: Classes | None = Classes(f"dataset {name}", tuple(map(str, things)))
    else:
        theirs = read_classes(name, num_classes)
    difference = None if theirs is None else classes.difference(theirs)
    if difference:
        raise InputError(
            f"Dataset {name} ({config_key}) numbers its classes otherwise than the model does: {difference}; expected "
            f"the same names in the same order: change {config_key}, or the names where the dataset is registered."
        )


def dataset_ids(name: str, num_classes: int) -> dict[int, int]:
    """The id that a dataset's own files have for each class 0..K-1; the number itself where it does not say all."""
    classes = read_classes(name, num_classes)
    return dict(enumerate(range(num_classes) if classes is None or classes.ids is None else classes.ids))


def ignore_label_of(metadata: Metadata, default: int = DEFAULT_IGNORE_LABEL) -> int:
    """The value of pixels without a class in a dataset's semantic labels; Detectron2's default where it names none."""
    label = metadata.get("ignore_label")
    return default if label is None else label


def require(metadata: Metadata, key: str) -> Any:
    """A value of a dataset's metadata that cannot be done without.

    Raises:
        InputError: it is not there.
    """
    value = metadata.get(key)
    if value is None:
        raise InputError(
            f"Dataset {metadata.name} has no {key} in its metadata, which its evaluation needs: set it where the "
            f"dataset is registered, MetadataCatalog.get({metadata.name!r}).set({key}=...)."
        )
    return value
