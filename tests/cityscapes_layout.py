"""A small Cityscapes, drawn in the layout of the real one with the label table of cityscapesScripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.labels import id2label, name2label
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from PIL import Image

NAMES = ("aachen_000000_000019", "ulm_000003_000007")
SIZE = (48, 64)


def draw_instance_ids(name: str) -> np.ndarray:
    """A street under the sky with cars, a person, a group of bicycles and an unlabelled corner, as instance ids."""
    label = {key: value.id for key, value in name2label.items()}
    ids = np.full(SIZE, label["road"], dtype=np.uint16)
    ids[:20] = label["sky"]
    ids[14:24, :30] = label["building"]
    ids[24:40, 4:20] = label["car"] * 1000
    ids[26:42, 16:34] = label["car"] * 1000 + 1
    ids[22:40, 40:48] = label["person"] * 1000
    ids[30:44, 50:62] = label["bicycle"]  # a group
    ids[44:, :6] = label["ego vehicle"]
    return ids if name == NAMES[0] else ids[:, ::-1]


def write_cityscapes(root: Path, split: str = "val") -> Path:
    """Write the images and every kind of label below ``root/cityscapes``; returns that folder."""
    folder = root / "cityscapes"
    for name in NAMES:
        city = name.split("_")[0]
        images, labels = folder / "leftImg8bit" / split / city, folder / "gtFine" / split / city
        images.mkdir(parents=True), labels.mkdir(parents=True)
        ids = draw_instance_ids(name)
        label_ids = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
        train_ids = np.vectorize(lambda i: id2label[i].trainId)(label_ids).astype(np.uint8)
        colours = np.array([id2label[i].color for i in range(34)], dtype=np.uint8)
        Image.fromarray(colours[label_ids]).save(images / f"{name}_leftImg8bit.png")
        for kind, pixels in (("instanceIds", ids), ("labelIds", label_ids), ("labelTrainIds", train_ids)):
            Image.fromarray(np.ascontiguousarray(pixels)).save(labels / f"{name}_gtFine_{kind}.png")
    convert2panoptic(str(folder / "gtFine"), setNames=[split])
    return folder
