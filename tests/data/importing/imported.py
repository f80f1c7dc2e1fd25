"""What the command wrote, read back as a training does; and pictures for sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as rle

from maskformer.config import load_config
from maskformer.data.mappers.table import build_mapper
from maskformer.engine.setup import register_datasets

SIZE = (60, 80)  # height, width


def draw(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@dataclass
class Imported:
    """What a command wrote, read back."""

    code: int
    printed: str
    folder: Path

    @property
    def content(self) -> dict:
        return yaml.safe_load((self.folder / "dataset.yaml").read_text())["DATASETS"]

    def records(self, split: str = "train") -> list[dict]:
        """The records of a split, each of which the mapper has turned into a training example."""
        cfg = load_config(str(self.folder / "dataset.yaml"), ["MODEL.DEVICE", "cpu"])
        register_datasets(cfg)
        records = DatasetCatalog.get(f"{self.folder.name}_{split}")
        for record in records:
            build_mapper(cfg, is_train=True)(record)
        return records

    def objects(self, split: str = "train") -> dict[str, list[tuple[str, np.ndarray]]]:
        """The class and the mask of each object, for each picture of a split."""
        found = {}
        for record in self.records(split):
            size = (record["height"], record["width"])
            names = MetadataCatalog.get(f"{self.folder.name}_{split}").thing_classes
            found[Path(record["file_name"]).name] = [
                (names[each["category_id"]], to_mask(each["segmentation"], size)) for each in record["annotations"]
            ]
        return found

    def label_map(self, index: int = 0, split: str = "train") -> np.ndarray:
        return np.asarray(Image.open(self.records(split)[index]["sem_seg_file_name"]))


def to_mask(segmentation: object, size: tuple[int, int]) -> np.ndarray:
    encoded = segmentation if isinstance(segmentation, dict) else rle.merge(rle.frPyObjects(segmentation, *size))
    return rle.decode(encoded).astype(bool)


def losses(printed: str) -> dict[str, int]:
    """The table of what was lost."""
    rows = printed.partition("lost or changed")[2].splitlines()[2:]
    parts = (re.split(r"\s{2,}", row.strip()) for row in rows)
    return {words[1]: int(words[0]) for words in parts if words[0].isdigit()}
