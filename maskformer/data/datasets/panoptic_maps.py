"""Datasets of COCO's panoptic format: a row of a table each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from .registration import Category, load_panoptic, panoptic_metadata, read_categories, register


@dataclass(frozen=True)
class PanopticMaps:
    """One dataset; ``{split}`` and ``{folder}`` in its name and paths are replaced by those of each split.

    Attributes:
        name: of a split, as in ``DATASETS.TRAIN``.
        evaluator_type: how it is measured.
        categories: gives its classes, with the ids of its JSON.
        images: the folder of its images, from the root of all datasets.
        panoptic: the folder of its panoptic PNGs.
        panoptic_json: what describes them.
        folders: split -> what it is called in paths.
        labels: the folder of its label maps; None: the panoptic PNGs are the semantic truth too.
        instances: COCO's JSON of its instances; None: there is none.
        ignore_label: the value of pixels without a class in label maps.
    """

    name: str
    evaluator_type: str
    categories: Callable[[], list[Category]]
    images: str
    panoptic: str
    panoptic_json: str
    folders: dict[str, str]
    labels: str | None = None
    instances: str | None = None
    ignore_label: int = 255

    def register(self, root: str | Path) -> None:
        """Register each split as found under the root of all datasets; files are looked for when it is loaded."""
        categories = self.categories()
        paths = {
            "image_root": self.images,
            "panoptic_root": self.panoptic,
            "panoptic_json": self.panoptic_json,
            "sem_seg_root": self.labels,
            "json_file": self.instances,
        }
        for split, folder in self.folders.items():
            files = {
                key: str(Path(root) / path.format(split=split, folder=folder)) for key, path in paths.items() if path
            }
            read = {key: path for key, path in files.items() if key != "json_file"}
            register(
                self.name.format(split=split),
                partial(load_panoptic, **read, categories=categories),
                **files,
                **panoptic_metadata(categories),
                **({} if self.labels else {"sem_seg_of_segments": True}),
                evaluator_type=self.evaluator_type,
                ignore_label=self.ignore_label,
                label_divisor=1000,
            )


def _mapillary_categories() -> list[Category]:
    """The classes of the label maps, which count from 0; the JSON counts from 1."""
    return [{**category, "id": category["id"] + 1} for category in read_categories("mapillary_vistas_65.json")]


ADE20K = PanopticMaps(  # the scene parsing challenge of 2016; its instances are made for ade20k_instance_{split}
    name="ade20k_panoptic_{split}",
    evaluator_type="ade20k_panoptic_seg",
    categories=partial(read_categories, "ade20k_150.json"),
    images="ADEChallengeData2016/images/{folder}",
    panoptic="ADEChallengeData2016/ade20k_panoptic_{split}",
    panoptic_json="ADEChallengeData2016/ade20k_panoptic_{split}.json",
    folders={"train": "training", "val": "validation"},
    labels="ADEChallengeData2016/annotations_detectron2/{folder}",
    instances="ADEChallengeData2016/ade20k_instance_{split}.json",
)
COCO = PanopticMaps(  # Detectron2's coco_2017_{split}_panoptic, measured as a semantic dataset besides
    name="coco_2017_{split}_panoptic_with_sem_seg",
    evaluator_type="coco_panoptic_seg",
    categories=lambda: COCO_CATEGORIES,
    images="coco/{split}2017",
    panoptic="coco/panoptic_{split}2017",
    panoptic_json="coco/annotations/panoptic_{split}2017.json",
    folders={"train": "train", "val": "val"},
    instances="coco/annotations/instances_{split}2017.json",
)
MAPILLARY_VISTAS = PanopticMaps(  # version 1.2
    name="mapillary_vistas_panoptic_{split}",
    evaluator_type="mapillary_vistas_panoptic_seg",
    categories=_mapillary_categories,
    images="mapillary_vistas/{folder}/images",
    panoptic="mapillary_vistas/{folder}/panoptic",
    panoptic_json="mapillary_vistas/{folder}/panoptic/panoptic_2018.json",
    folders={"train": "training", "val": "validation"},
    labels="mapillary_vistas/{folder}/labels",
    ignore_label=65,
)
