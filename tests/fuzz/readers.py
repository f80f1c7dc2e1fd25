"""What is fuzzed: each function takes a file's content, as bytes, and uses it as a training or a tool would."""

from __future__ import annotations

import functools
import io
import json
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
import torch
from PIL import Image
from safetensors.torch import save

from maskformer.checkpoint import read_weights
from maskformer.config import load_config
from maskformer.data import MaskFormerInstanceDatasetMapper, MaskFormerPanopticDatasetMapper
from maskformer.data.datasets.own import load_instances, load_panoptic
from maskformer.data.files.reading import read_class_map, read_label_map, read_picture
from maskformer.data.mappers.base import TrainingMapper
from maskformer.data.transforms.augmentations import LabelledImage, ResizedCrop, build_flip, build_resize, crop_recipe
from maskformer.structures import LabelValues, OwnDataset

warnings.filterwarnings("ignore", module="PIL")

HEIGHT, WIDTH = 4, 6
IDS = np.array([[1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 0, 0], [300, 300, 300, 300, 300, 300], [300] * 6])
CLASSES = ("grass", "sky", "cat")


@dataclass(frozen=True)
class Reader:
    """One kind of input.

    Attributes:
        use: takes the content and a folder to work in.
        seeds: valid contents.
        files: what has to lie in the folder, by name.
    """

    use: Callable[[bytes, Path], Any]
    seeds: tuple[bytes, ...]
    files: dict[str, bytes]

    def prepare(self, folder: Path) -> None:
        """Write the files that the input goes with."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def encode(pixels: np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def _rgb(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


PHOTO = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
LABELS = np.array([[0, 1, 2, 255, 0, 0]] * HEIGHT, dtype=np.uint8)
PICTURES = (
    encode(PHOTO),
    encode(PHOTO, "JPEG", exif=_exif()),
    encode(PHOTO, "TIFF", compression="tiff_lzw"),
    encode(PHOTO, "BMP"),
    encode(PHOTO, "GIF"),
    encode(PHOTO, "WEBP"),
    encode(PHOTO, "PPM"),
    encode(PHOTO, "JPEG2000"),
    encode(LABELS.astype(np.uint16) * 200),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n(x) run\n%%EOF\n",
)
LABEL_MAPS = (
    encode(LABELS),
    encode(LABELS.astype(np.uint16)),
    encode(LABELS.astype(np.uint16), "TIFF"),
    encode(LABELS, "BMP"),
    encode(LABELS.astype(np.int32), "TIFF"),
)

COMPRESSED = rle.frPyObjects({"size": [HEIGHT, WIDTH], "counts": [0, 3, 21]}, HEIGHT, WIDTH)["counts"].decode()
IMAGES = [{"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}]
CATEGORIES = [{"id": i, "name": n, "isthing": int(n == "cat")} for i, n in enumerate(CLASSES)]
SEGMENTS = [
    {"id": 1, "category_id": 2, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]},
    {"id": 2, "category_id": 2, "iscrowd": 1, "area": 4, "bbox": [2, 0, 2, 2]},
    {"id": 300, "category_id": 0, "iscrowd": 0, "area": 12, "bbox": [0, 2, 6, 2]},
]
PANOPTIC = {
    "images": IMAGES,
    "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": SEGMENTS}],
    "categories": CATEGORIES,
}
INSTANCES = {
    "images": IMAGES,
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 2,
            "iscrowd": 0,
            "area": 4,
            "bbox": [0.0, 0.0, 2.0, 2.0],
            "segmentation": [[0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0]],
        },
        {
            "id": 2,
            "image_id": 7,
            "category_id": 2,
            "iscrowd": 1,
            "area": 6,
            "bbox": [0, 0, 3, 2],
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 3, 21]},
        },
        {
            "id": 3,
            "image_id": 7,
            "category_id": 2,
            "iscrowd": 0,
            "area": 3,
            "bbox": [0, 0, 1, 3],
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": COMPRESSED},
        },
    ],
    "categories": CATEGORIES[2:],
}


def _own(kind: str, folder: Path) -> OwnDataset:
    paths = {"images": str(folder / "images"), kind: str(folder / f"{kind}.json")}
    if kind == "panoptic":
        paths["panoptic_masks"] = str(folder / "masks")
        return OwnDataset("x_train", "x.train", CLASSES, None, LabelValues((0, 1, 2), ()), ("cat",), paths)
    return OwnDataset("x_train", "x.train", ("cat",), None, LabelValues((2,), ()), ("cat",), paths)


def _mapper(kind: type[TrainingMapper]) -> TrainingMapper:
    recipe = crop_recipe(resize=build_resize([8], 16, "choice"), crop=None, colour_jitter=None, flip=build_flip("none"))
    return kind(augmentations=recipe, image_format="RGB", num_classes=3, ignore_label=255, size_divisibility=4)


def use_picture(content: bytes, folder: Path) -> None:
    """An image, as a mapper reads it."""
    (folder / "input.jpg").write_bytes(content)
    image = np.asarray(read_picture(str(folder / "input.jpg")))
    assert image.dtype == np.uint8 and image.shape[2:] == (3,)
    if image.size < 10**6:
        ResizedCrop(build_resize([8], 16, "choice"))(LabelledImage(image))


def use_label_map(content: bytes, folder: Path) -> None:
    """A semantic label."""
    (folder / "input.png").write_bytes(content)
    read_class_map(str(folder / "input.png"))
    label_map = read_label_map(str(folder / "input.png"), len(CLASSES), 255)
    assert set(np.unique(label_map)) <= {0, 1, 2, 255}


def use_panoptic_png(content: bytes, folder: Path) -> None:
    """The map of a panoptic label whose JSON is good."""
    (folder / "masks" / "a.png").write_bytes(content)
    _map_panoptic(folder)


def use_panoptic_json(content: bytes, folder: Path) -> None:
    """The JSON of a panoptic dataset whose maps are good."""
    (folder / "panoptic.json").write_bytes(content)
    _map_panoptic(folder)


def _map_panoptic(folder: Path) -> None:
    mapper = _mapper(MaskFormerPanopticDatasetMapper)
    for record in load_panoptic(_own("panoptic", folder)):
        assert Path(record["pan_seg_file_name"]).resolve().is_relative_to((folder / "masks").resolve())
        example = mapper(record)
        assert set(example["instances"].gt_classes.tolist()) <= {0, 1, 2}


def use_instance_json(content: bytes, folder: Path) -> None:
    """The JSON of a dataset of instances."""
    (folder / "instances.json").write_bytes(content)
    mapper = _mapper(MaskFormerInstanceDatasetMapper)
    for record in load_instances(_own("instances", folder)):
        assert Path(record["file_name"]).resolve().is_relative_to((folder / "images").resolve())
        if all("segmentation" in annotation for annotation in record["annotations"]):
            mapper(record)


def use_config(content: bytes, folder: Path) -> None:
    """A configuration file."""
    (folder / "input.yaml").write_bytes(content)
    cfg = load_config(str(folder / "input.yaml"))
    cfg.clone().freeze()
    cfg.dump()


def use_checkpoint(ending: str, content: bytes, folder: Path) -> None:
    """A file of weights."""
    (folder / f"input{ending}").write_bytes(content)
    state = read_weights(str(folder / f"input{ending}"))["model"]
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def _torch_file(**options: Any) -> bytes:
    buffer = io.BytesIO()
    state = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2, dtype=torch.float16))
    torch.save({"model": state, "iteration": 3, "trainer": {"lr": 0.1}}, buffer, **options)
    return buffer.getvalue()


_ARRAYS = {"model": {"weight": np.arange(6.0).reshape(2, 3), "bias": np.ones(2, np.float32)}, "__author__": "x"}
_TENSORS = {"model": {"weight": torch.arange(6.0), "bias": torch.ones(2)}}
WEIGHTS = {
    ".pth": (_torch_file(), _torch_file(_use_new_zipfile_serialization=False)),
    ".pkl": (*(pickle.dumps(_ARRAYS, protocol=p) for p in (2, 3, 4, 5)), pickle.dumps(_TENSORS, protocol=2)),
    ".safetensors": (
        save({"weight": torch.arange(6.0), "bias": torch.ones(2)}),
        struct.pack("<Q", 2**62) + b"{}",
    ),
}
CONFIGS = (
    b"_BASE_: base.yaml\nMODEL:\n  WEIGHTS: ''\n  SEM_SEG_HEAD: {NUM_CLASSES: 3}\nINPUT:\n  MIN_SIZE_TRAIN: "
    b'!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]\n',
    b"DATASETS:\n  OWN:\n    garden:\n      classes: [grass, sky]\n      ignore: [0, 255]\n      offset: 1\n"
    b"      train: {images: images, labels: labels}\n  TRAIN: [garden_train]\n",
    b"SOLVER: {BASE_LR: 0.1, STEPS: [1, 2], AMP: {ENABLED: true}}\nMODEL: {PIXEL_MEAN: [1.0, 2, 3]}\n",
    b"VERSION: 2\nMODEL: &m {DEVICE: cpu}\nINPUT: {CROP: {ENABLED: true, SIZE: [0.4, 0.4]}}\n",
)
_FILES = {"images/a.jpg": encode(PHOTO, "JPEG"), "masks/a.png": encode(_rgb(IDS))}
_PANOPTIC_JSON, _INSTANCE_JSON = json.dumps(PANOPTIC).encode(), json.dumps(INSTANCES).encode()

READERS = {
    "image": Reader(use_picture, PICTURES, {}),
    "label map": Reader(use_label_map, LABEL_MAPS, {}),
    "panoptic PNG": Reader(use_panoptic_png, (encode(_rgb(IDS)),), {**_FILES, "panoptic.json": _PANOPTIC_JSON}),
    "panoptic JSON": Reader(use_panoptic_json, (_PANOPTIC_JSON,), _FILES),
    "instance JSON": Reader(use_instance_json, (_INSTANCE_JSON,), _FILES),
    "configuration": Reader(use_config, CONFIGS, {"base.yaml": b"SOLVER: {MAX_ITER: 7}\n"}),
    **{
        f"checkpoint {ending}": Reader(functools.partial(use_checkpoint, ending), seeds, {})
        for ending, seeds in WEIGHTS.items()
    },
    "states in a .pkl": Reader(functools.partial(use_checkpoint, ".pkl"), WEIGHTS[".pkl"], {}),
}
