"""The built-in dataset, which maskformer.demo draws: ``shapes_{panoptic,sem_seg,instance}_{train,val}``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from maskformer.structures import InputError

from . import registration
from .registration import register

Record = dict[str, Any]
FOLDER = "shapes"


@dataclass(frozen=True)
class Category:
    """One category of the dataset.

    Attributes:
        name: how it is shown.
        color: RGB, 0..255, for drawing labels; not the colour it has in the images.
        is_thing: whether its segments are counted one by one.
    """

    name: str
    color: tuple[int, int, int]
    is_thing: bool


CATEGORIES = (
    Category("ball", (226, 68, 62), True),
    Category("box", (245, 148, 40), True),
    Category("triangle", (142, 84, 212), True),
    Category("star", (255, 236, 96), True),
    Category("ring", (240, 110, 200), True),
    Category("sky", (139, 190, 235), False),
    Category("water", (46, 117, 182), False),
    Category("grass", (96, 169, 84), False),
    Category("sand", (219, 197, 147), False),
)
THINGS = tuple(category for category in CATEGORIES if category.is_thing)
INDEX_OF = {category.name: index for index, category in enumerate(CATEGORIES)}


def dataset_id(index: int) -> int:
    """The category id in the JSON files for a contiguous index: they count from 1."""
    return index + 1


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(
            f"{path} is missing; write the built-in dataset with `make demo` or "
            "`python -m maskformer.tools.make_shapes`, or set DETECTRON2_DATASETS to the folder that holds it."
        )
    return path


def load_panoptic(folder: Path, split: str) -> list[Record]:
    """Read a split with its panoptic and semantic labels.

    Args:
        folder: the dataset's folder.
        split: "train" or "val".

    Returns:
        Detectron2's dataset dicts: ``file_name``, ``image_id``, ``height``, ``width``, ``sem_seg_file_name``,
        ``pan_seg_file_name`` and ``segments_info`` with contiguous ``category_id``.

    Raises:
        InputError: the dataset is not there.
    """
    return registration.load_panoptic(
        image_root=str(folder / split),
        sem_seg_root=str(folder / f"sem_seg_{split}"),
        panoptic_root=str(folder / f"panoptic_{split}"),
        panoptic_json=str(_existing(folder / "annotations" / f"panoptic_{split}.json")),
        categories=_categories(),
    )


def load_semantic(folder: Path, split: str) -> list[Record]:
    """Read a split with its semantic labels only; else as ``load_panoptic``."""
    panoptic_keys = ("pan_seg_file_name", "segments_info")
    records = load_panoptic(folder, split)
    return [{key: value for key, value in record.items() if key not in panoptic_keys} for record in records]


def load_instances(folder: Path, split: str) -> list[Record]:
    """Read a split with its things as Detectron2's ``annotations``; raises as ``load_panoptic``."""
    json_file = _existing(folder / "annotations" / f"instances_{split}.json")
    return registration.load_instances(str(json_file), str(folder / split), f"shapes_instance_{split}")


def _categories() -> list[registration.Category]:
    return [
        {"id": dataset_id(index), "name": each.name, "color": list(each.color), "isthing": each.is_thing}
        for index, each in enumerate(CATEGORIES)
    ]


def _metadata(folder: Path, split: str) -> Record:
    """Say what evaluators and visualizer ask for; the stuff tables hold all categories, as Detectron2's COCO does."""
    return {
        **registration.semantic_metadata(_categories()),
        **registration.instance_metadata(_categories()),
        "image_root": str(folder / split),
        "panoptic_root": str(folder / f"panoptic_{split}"),
        "panoptic_json": str(folder / "annotations" / f"panoptic_{split}.json"),
        "sem_seg_root": str(folder / f"sem_seg_{split}"),
        "json_file": str(folder / "annotations" / f"instances_{split}.json"),
        "ignore_label": 255,
        "label_divisor": 1000,
    }


# What a name says of its labels -> its loader, and the evaluator type it asks for.
_TASKS: dict[str, tuple[Callable[[Path, str], list[Record]], str]] = {
    "panoptic": (load_panoptic, "coco_panoptic_seg"),
    "sem_seg": (load_semantic, "sem_seg"),
    "instance": (load_instances, "coco"),
}


def register_shapes(root: str | Path) -> None:
    """Register the built-in dataset as found under ``root/shapes``, in place of an earlier registration.

    The files are looked for when a dataset is loaded, not now.

    Args:
        root: the folder of all datasets.
    """
    folder = Path(root) / FOLDER
    for task, (load, evaluator_type) in _TASKS.items():
        for split in ("train", "val"):
            name = f"shapes_{task}_{split}"
            register(name, partial(load, folder, split), evaluator_type=evaluator_type, **_metadata(folder, split))
