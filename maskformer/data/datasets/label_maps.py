"""Datasets that are a folder of images and one of label maps: a row of a table each, read by Detectron2's loader."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data.datasets import load_sem_seg

from .registration import read_categories, register, semantic_metadata


@dataclass(frozen=True)
class LabelMaps:
    """One dataset; ``{split}`` in a name and ``{folder}`` in a path are replaced by those of each split.

    Attributes:
        name: of a split, as in ``DATASETS.TRAIN``.
        categories: the file with its classes.
        images: the folder of its JPEGs, from the root of all datasets.
        labels: the folder of its label maps.
        folders: split -> what it is called in paths.
        ignore_label: the value of pixels without a class.
        label_suffix: of the label maps.
    """

    name: str
    categories: str
    images: str
    labels: str
    folders: dict[str, str]
    ignore_label: int = 255
    label_suffix: str = "png"

    def register(self, root: str | Path) -> None:
        """Register each split as found under the root of all datasets; files are looked for when it is loaded."""
        for split, folder in self.folders.items():
            images, labels = (str(Path(root) / path.format(folder=folder)) for path in (self.images, self.labels))
            register(
                self.name.format(split=split),
                partial(load_sem_seg, labels, images, gt_ext=self.label_suffix, image_ext="jpg"),
                image_root=images,
                sem_seg_root=labels,
                evaluator_type="sem_seg",
                ignore_label=self.ignore_label,
                **semantic_metadata(read_categories(self.categories)),
            )


ADE20K_FULL = LabelMaps(  # released in 2021, with the 847 classes of the full protocol
    name="ade20k_full_sem_seg_{split}",
    categories="ade20k_full_847.json",
    images="ADE20K_2021_17_01/images_detectron2/{folder}",
    labels="ADE20K_2021_17_01/annotations_detectron2/{folder}",
    folders={"train": "training", "val": "validation"},
    ignore_label=65535,  # 255 is a class here: labels are 16-bit
    label_suffix="tif",
)
COCO_STUFF_10K = LabelMaps(  # version 1.0, 80 thing and 91 stuff classes
    name="coco_2017_{split}_stuff_10k_sem_seg",
    categories="coco_stuff_171.json",
    images="coco/coco_stuff_10k/images_detectron2/{folder}",
    labels="coco/coco_stuff_10k/annotations_detectron2/{folder}",
    folders={"train": "train", "test": "test"},
)
MAPILLARY_VISTAS = LabelMaps(  # version 1.2, the 65 evaluated of its 66 classes
    name="mapillary_vistas_sem_seg_{split}",
    categories="mapillary_vistas_65.json",
    images="mapillary_vistas/{folder}/images",
    labels="mapillary_vistas/{folder}/labels",
    folders={"train": "training", "val": "validation"},
    ignore_label=65,  # the 66th class, "Unlabeled"
)
