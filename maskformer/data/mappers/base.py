"""What all mappers share: settings, augmentation, padding and the form of an example; and the mapper of evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import Tensor

from maskformer.structures import InputError, SegmentMasks

from ..datasets.classes import ignore_label_of
from ..files.reading import check_declared_size, check_same_size, read_label_map, read_picture
from ..transforms.augmentations import (
    LabelledImage,
    ResizedCrop,
    build_colour_jitter,
    build_crop,
    build_flip,
    build_resize,
    build_test_resize,
    crop_recipe,
    pad_to_multiple,
)

Record = dict[str, Any]  # a dataset's entry for one image, or an example made of it


class TrainingMapper:
    """Turns a dataset's entry for one image into a training example; subclasses say what its targets are.

    An example has ``file_name``, ``image_id`` if the dataset gives one, the image's original ``height`` and ``width``,
    ``image`` (3,H,W) uint8, ``sem_seg`` (H,W) integers where there is a semantic label, and ``instances`` with
    ``gt_classes`` (G,) int64 and ``gt_masks`` of the padded size.

    Args:
        augmentations: applied to image and label together.
        image_format: "RGB" or "BGR".
        num_classes: K.
        ignore_label: the value of pixels without a class in semantic labels.
        size_divisibility: examples are padded bottom/right to a multiple of it, in pixels; below 1: no padding.
        padding_value: grey of padded pixels, 0..255; they belong to no segment.
        max_draws: at most so many examples are drawn of an image until one has a target.
    """

    recipe = staticmethod(crop_recipe)

    @configurable
    def __init__(
        self,
        *,
        augmentations: T.Augmentation,
        image_format: str,
        num_classes: int,
        ignore_label: int,
        size_divisibility: int,
        padding_value: int = 128,
        max_draws: int = 1,
    ):
        self.augmentations = augmentations
        self.image_format, self.num_classes = image_format, num_classes
        self.ignore_label, self.size_divisibility = ignore_label, size_divisibility
        self.padding_value, self.max_draws = padding_value, max_draws

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read ``INPUT`` and the metadata of the first training dataset.

        Raises:
            InputError: a key has a wrong value, or Detectron2's configuration was not completed by ours.
        """
        if not is_train:
            raise ValueError(f"{cls.__name__} makes training examples only; InferenceMapper prepares evaluation.")
        ignore_label = _ignore_label(cfg)
        try:
            options = cls.shape_options(cfg, ignore_label)
            options |= {"padding_value": cfg.INPUT.PADDING_VALUE, "max_draws": cfg.INPUT.MAX_DRAWS}
        except AttributeError as error:  # CfgNode's, of the key's last part
            raise InputError(
                f"The configuration has no {error}, which {cls.__name__} needs; expected one of "
                "maskformer.config.load_config, or call add_maskformer_config on it."
            ) from error
        return {
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": ignore_label,
            **options,
        }

    @classmethod
    def shape_options(cls, cfg: CfgNode, ignore_label: int) -> dict[str, Any]:
        """Arguments that decide how large an example is: ``augmentations`` and ``size_divisibility``."""
        settings = cfg.INPUT
        crop = build_crop(settings.CROP.TYPE, settings.CROP.SIZE, settings.CROP.SINGLE_CATEGORY_MAX_AREA, ignore_label)
        augmentations = cls.recipe(
            resize=build_resize(settings.MIN_SIZE_TRAIN, settings.MAX_SIZE_TRAIN, settings.MIN_SIZE_TRAIN_SAMPLING),
            crop=crop if settings.CROP.ENABLED else None,
            colour_jitter=cls.colour_jitter(settings),
            flip=build_flip(settings.RANDOM_FLIP),
        )
        return {"augmentations": augmentations, "size_divisibility": settings.SIZE_DIVISIBILITY}

    @staticmethod
    def colour_jitter(settings: CfgNode) -> T.Transform | None:
        """What ``INPUT.COLOR_AUG_SSD`` and ``INPUT.FORMAT`` ask for."""
        return build_colour_jitter(settings.FORMAT) if settings.COLOR_AUG_SSD else None

    def __call__(self, dataset_dict: Record) -> Record:
        """Make the example of one image; the given entry is left as it is.

        Raises:
            InputError: a file cannot be read, or image and label do not fit each other or the configuration.
        """
        for _ in range(self.max_draws - 1):
            example = self.draw(dataset_dict)
            if len(example["instances"]):
                return example
        return self.draw(dataset_dict)

    def draw(self, dataset_dict: Record) -> Record:
        """Make an example, augmented at random; see ``__call__``."""
        raise NotImplementedError

    def _read_label_map(self, record: Record, image: LabelledImage) -> np.ndarray:
        label_file = self._required(record, "sem_seg_file_name")
        label_map = read_label_map(label_file, self.num_classes, self.ignore_label, record.get("label_values"))
        check_same_size(image, record["file_name"], label_map, label_file)
        return label_map

    def _required(self, record: Record, key: str) -> Any:
        if key not in record:
            raise InputError(
                f"The training dataset gives no {key} for image {record['file_name']} but {type(self).__name__} "
                "expects it; change DATASETS.TRAIN, or INPUT.DATASET_MAPPER_NAME to a mapper that reads what the "
                f"dataset gives ({', '.join(sorted(record))})."
            )
        return record[key]

    def _pad(self, array: np.ndarray, value: int) -> np.ndarray:
        return pad_to_multiple(array, self.size_divisibility, value)

    def _example(self, record: Record, labelled: LabelledImage, labels: Tensor, masks: SegmentMasks) -> Record:
        example = image_example(record, labelled, self._pad(labelled.image, self.padding_value))
        example["instances"] = Instances(masks.image_size, gt_classes=labels, gt_masks=masks)
        return example


def _ignore_label(cfg: CfgNode) -> int:
    """The first training dataset's own, or ``MODEL.SEM_SEG_HEAD.IGNORE_VALUE`` where it names none."""
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty; expected the name of a training dataset.")
    name = cfg.DATASETS.TRAIN[0]
    default = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    return ignore_label_of(MetadataCatalog.get(name), default) if name in DatasetCatalog else default


class InferenceMapper:
    """Reads and resizes an image; evaluators read the labels themselves.

    Args:
        resize: of the shortest edge.
        image_format: "RGB" or "BGR".
    """

    @configurable
    def __init__(self, *, resize: T.Augmentation, image_format: str):
        self.resize = resize
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``INPUT.FORMAT``, and what ``evaluation_resize`` reads."""
        return {"resize": ResizedCrop(evaluation_resize(cfg)), "image_format": cfg.INPUT.FORMAT}

    def __call__(self, dataset_dict: Record) -> Record:
        """Make the network's input: ``image`` (3,H,W) uint8, original ``height`` and ``width``, and the names."""
        labelled = read_image(dataset_dict, self.image_format)
        self.resize(labelled)
        return image_example(dataset_dict, labelled, labelled.image)


def evaluation_resize(cfg: CfgNode) -> T.Augmentation:
    """What ``INPUT.MIN_SIZE_TEST`` (0: no resizing), ``MAX_SIZE_TEST`` and ``ROUNDING_TEST`` say of every image."""
    settings = cfg.INPUT
    return build_test_resize(settings.MIN_SIZE_TEST, settings.MAX_SIZE_TEST, settings.ROUNDING_TEST)


def read_image(record: Record, image_format: str) -> LabelledImage:
    """Read the image of a dataset's entry, as "RGB" or "BGR".

    Raises:
        BadImageError: it cannot be read, or has another size than the entry says.
    """
    labelled = LabelledImage(read_picture(record["file_name"], bands=record.get("bands")), image_format=image_format)
    check_declared_size(record, labelled)
    return labelled


def image_example(record: Record, labelled: LabelledImage, image: np.ndarray) -> Record:
    """Start an example of what was read and became ``image`` (H,W,3) uint8, augmented and padded.

    Returns:
        ``file_name``, ``image_id`` and ``dataset_index`` if there is one, ``height``, ``width``, ``image`` (3,H,W).
    """
    example: Record = {key: record[key] for key in ("file_name", "image_id", "dataset_index") if key in record}
    example["height"], example["width"] = labelled.original_size
    example["image"] = owned_tensor(image.transpose(2, 0, 1))
    return example


def owned_tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an array: what Pillow returns is read-only, and a crop would carry its whole image out of the worker."""
    return torch.from_numpy(np.array(array, order="C"))
