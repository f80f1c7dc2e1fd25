"""What a model may be handed: each example is looked at where it arrives, so that a wrong one is named in a sentence.

Shapes and types are checked, and values only of what lies on the host: nothing here waits for a device in training.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

from maskformer.structures import InputError, SegmentMasks

Size = tuple[int, int]
_MOST_PIXELS = 2**31  # of a result: maps are indexed with 32 bits
MOST_OF_ONE = 1.01  # of values of 0..1, with what interpolation and rounding add
_MOST_NORMALISED = 4  # standard deviations that white is above the mean of ImageNet, and more
_MOST_OVERSHOOT = 128  # of values of 0..255, by cubic interpolation
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_images(batch: Any, num_channels: int = 3) -> None:
    """Look at the images of a batch.

    Args:
        batch: should be a list of dicts with ``image``, (num_channels, rows, columns) uint8 or floats of 0..255.
        num_channels: as many as the model has means.

    Raises:
        InputError: it is anything else, empty, or has values that are not finite, of 0..1, normalised or out of range.
    """
    if not isinstance(batch, (list, tuple)) or not batch or not all(isinstance(example, dict) for example in batch):
        seen = "an empty list" if isinstance(batch, (list, tuple)) and not batch else f"a {type(batch).__name__}"
        raise InputError(f"The model was given {seen}; expected a list of one dict an image, each with 'image'.")
    for example in batch:
        fault = _fault_of_image(example["image"], num_channels) if "image" in example else "is not there"
        if fault is not None:
            raise InputError(
                f"'image' of {_name(example)} {fault}; expected a tensor of ({num_channels}, rows, columns), "
                "uint8 or floats of 0..255: as many channels as MODEL.PIXEL_MEAN has numbers."
            )


def _fault_of_image(image: Any, num_channels: int) -> str | None:
    """What is wrong with an image, as the rest of a sentence."""
    if not isinstance(image, Tensor):
        return f"is a {type(image).__name__}"
    shape = tuple(image.shape)
    if len(shape) == 3 and shape[2] == num_channels != shape[0]:
        return f"has the shape {shape}: its channels come last, which image.permute(2, 0, 1) mends"
    if len(shape) != 3 or shape[0] != num_channels or 0 in shape:
        return f"has the shape {shape}"
    if image.dtype != torch.uint8 and not image.is_floating_point():
        return f"has the type {image.dtype}"
    if image.dtype == torch.uint8 or image.device.type != "cpu":
        return None
    if not image.isfinite().all():
        return "holds values that are not finite"
    low, high = (value.item() for value in image.aminmax())
    if low < -_MOST_OVERSHOOT or high > 255 + _MOST_OVERSHOOT:
        return f"holds values of {low:g}..{high:g}"
    if high >= _MOST_NORMALISED or not (image != image.round()).any():
        return None
    if low < 0:
        return f"holds values of {low:g}..{high:g}, as if normalised, which the model does itself"
    return "holds values of 0..1, which are to be multiplied by 255" if high <= MOST_OF_ONE else None


def output_size(example: dict[str, Any], image_size: Size) -> Size:
    """(height, width) that an example asks its results in, the image's own where it does not.

    Raises:
        InputError: they are no sizes, or too large.
    """
    height, width = (example.get(key, side) for key, side in zip(("height", "width"), image_size))
    try:
        size = operator.index(height), operator.index(width)
    except (TypeError, ValueError, RuntimeError):  # the latter of a tensor of several values
        size = 0, 0
    if min(size) < 1 or size[0] * size[1] >= _MOST_PIXELS:
        raise InputError(
            f"'height' and 'width' of {_name(example)} are {height!r} and {width!r}; expected the size of its results: "
            f"integers from 1, and less than {_MOST_PIXELS} pixels."
        )
    return size


def read_targets(example: dict[str, Any], num_classes: int) -> tuple[Tensor, SegmentMasks | Tensor]:
    """Find the segments of a training example, however Detectron2 stores them.

    Args:
        example: ``image``, and ``instances`` with ``gt_classes`` and, of the image's size, ``gt_masks``:
            ``SegmentMasks``, ``BitMasks``, ``PolygonMasks`` or a (G,rows,columns) tensor. Other fields, as
            ``gt_boxes``, are left alone.
        num_classes: K.

    Returns:
        ``labels`` (G,) int64, and the masks, (G,rows,columns) unless an id map holds them.

    Raises:
        InputError: there are none, or labels, masks and image do not fit each other.
    """
    instances, name = example.get("instances"), _name(example)
    if not isinstance(instances, Instances):
        found = "a semantic label only ('sem_seg')" if "sem_seg" in example else type(instances).__name__
        raise InputError(
            f"{name} comes with {found} as target, not with 'instances' of Detectron2: INPUT.DATASET_MAPPER_NAME must "
            "name a mapper of MaskFormer (mask_former_semantic reads semantic labels)."
        )
    if not instances.has("gt_classes"):
        raise InputError(f"'instances' of {name} have no gt_classes; expected the class of each, 0..{num_classes - 1}.")
    image_size = tuple(example["image"].shape[-2:])
    if len(instances) == 0:  # Detectron2 gives an image without objects no masks, and labels of whatever type
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, *image_size, dtype=torch.bool)
    return _read_labels(instances.gt_classes, name, num_classes), _read_masks(instances, name, image_size)


def _read_labels(labels: Any, name: str, num_classes: int) -> Tensor:
    labels = _as_tensor(labels, "gt_classes", name)
    if labels.ndim != 1 or labels.dtype not in _INTEGERS:
        raise InputError(
            f"gt_classes of {name} have the shape {tuple(labels.shape)} and type {labels.dtype}; expected one integer "
            "a segment."
        )
    wrong = labels[(labels < 0) | (labels >= num_classes)] if labels.device.type == "cpu" else []
    if len(wrong):
        raise InputError(
            f"gt_classes of {name} hold the label {int(wrong[0])}; expected 0..{num_classes - 1} "
            "(MODEL.SEM_SEG_HEAD.NUM_CLASSES): leave out segments without a class, or change NUM_CLASSES."
        )
    return labels.long()


def _read_masks(instances: Instances, name: str, image_size: Size) -> SegmentMasks | Tensor:
    if not instances.has("gt_masks"):
        fields = ", ".join(instances.get_fields())
        raise InputError(
            f"'instances' of {name} have {fields} but no gt_masks: MaskFormer learns masks. Train on a dataset with "
            "them; Detectron2's DatasetMapper reads them where MODEL.MASK_ON is True."
        )
    masks, size = instances.gt_masks, tuple(instances.image_size)
    if isinstance(masks, SegmentMasks):
        size = masks.image_size
    elif isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *size).tensor
    else:
        masks = _as_tensor(getattr(masks, "tensor", masks), "gt_masks", name)
        if masks.is_floating_point() and masks.device.type == "cpu" and (masks != masks.round()).any():
            raise InputError(f"gt_masks of {name} hold values that are no integers, or NaN; expected 0 and 1.")
        size = tuple(masks.shape[1:])
    if size != image_size:
        raise InputError(
            f"gt_masks of {name} are of {' x '.join(map(str, size))} pixels, its 'image' of "
            f"{' x '.join(map(str, image_size))} (rows x columns); expected one size: transform both alike."
        )
    return masks


def _as_tensor(values: Any, field: str, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{field} of {name} are a {type(values).__name__} that is no tensor: {error}.") from error


def _name(example: dict[str, Any]) -> str:
    return str(example.get("file_name", "an image without file_name"))
