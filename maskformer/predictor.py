"""One model and its preprocessing: an RGB image in, the model's results out."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image
from torch import Tensor, nn

from maskformer.checkpoint import Checkpointer
from maskformer.data.files import reading
from maskformer.engine.accelerator import with_device
from maskformer.engine.test_time import apply_test_time_options, check_test_classes, inference_options, innermost
from maskformer.meta_arch import know_classes
from maskformer.model_inputs import MOST_OF_ONE
from maskformer.model_inputs import output_size as checked_size
from maskformer.structures import BadImageError, Classes, InputError

CHANNEL_ORDERS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_ALLOWED = "(height, width, 3) uint8 RGB, or another picture that maskformer.predictor.as_rgb takes"


class Predictor:
    """Segments single images with a trained model.

    Args:
        model: gives, for a list of one example, a list of one result.
        resize: applied to each image before the model sees it.
        input_format: the model's channel order, "RGB" or "BGR"; callers always give RGB.

    Raises:
        InputError: another channel order.
    """

    def __init__(self, *, model: nn.Module, resize: T.Augmentation, input_format: str = "RGB"):
        if input_format not in CHANNEL_ORDERS:
            raise InputError(f"INPUT.FORMAT is {input_format!r}; expected one of {', '.join(CHANNEL_ORDERS)}.")
        self.model = model.eval()
        self._resize = resize
        self._channel_order = list(CHANNEL_ORDERS[input_format])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Predictor:
        """Build the model that a configuration describes and load MODEL.WEIGHTS.

        Args:
            cfg: complete; a MODEL.DEVICE of "auto" takes an available accelerator, else the CPU.

        Raises:
            InputError: no weights are given, or they do not fit; or of the classes less is known than results need, or
                something else than ``DATASETS.TEST`` says.
        """
        if not cfg.MODEL.WEIGHTS:
            raise InputError("MODEL.WEIGHTS is empty; set it to a trained model, such as output/model_final.pth.")
        cfg = with_device(cfg)
        model = build_model(cfg)
        know_classes(model, cfg)
        _load_all(model, cfg.MODEL.WEIGHTS)
        check_test_classes(cfg, model)
        cfg, model = apply_test_time_options(cfg, model)
        resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        return cls(model=model, resize=resize, input_format=cfg.INPUT.FORMAT)

    @property
    def classes(self) -> Classes | None:
        """What the model knows of its classes; None: nothing."""
        return getattr(innermost(self.model), "classes", None)

    @torch.inference_mode()
    def __call__(
        self, image: Any, output_size: tuple[int, int] | None = None, *, semantic_as_labels: bool = True
    ) -> dict[str, Any]:
        """Segment one image.

        Args:
            image: (height,width,3) uint8 RGB, or another picture that ``as_rgb`` takes, such as the name of a file.
            output_size: (height, width) of the results; the image's own by default.
            semantic_as_labels: whether MaskFormer's ``sem_seg`` is labels, or scores, which take K times the memory.

        Returns:
            The model's results: those switched on of ``sem_seg``, ``panoptic_seg`` and ``instances``.

        Raises:
            BadImageError: it is no picture, or so narrow that nothing is left of it when it is resized.
            InputError: the size of results is none.
        """
        rgb = as_rgb(image)
        asked = {} if output_size is None else dict(zip(("height", "width"), output_size))
        height, width = checked_size({"file_name": "the picture", **asked}, rgb.shape[:2])
        transform = self._resize.get_transform(rgb)
        if isinstance(transform, T.ResizeTransform) and min(transform.new_h, transform.new_w) < 1:
            raise BadImageError(
                f"A picture of {rgb.shape[0]} x {rgb.shape[1]} pixels (height x width) becomes {transform.new_h} x "
                f"{transform.new_w} within INPUT.MAX_SIZE_TEST; expected at least one pixel each way: cut the picture "
                "or raise the key."
            )
        resized = transform.apply_image(rgb)[:, :, self._channel_order]
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        with inference_options(self.model, semantic_as_labels=semantic_as_labels):
            return self.model([{"image": pixels, "height": height, "width": width}])[0]


def as_rgb(picture: Any) -> np.ndarray:
    """Bring a picture into the one form that a predictor resizes.

    Args:
        picture: the name of an image file; a picture of Pillow's, of any mode; or an array or tensor. Arrays are
            (height,width) or (height,width,channels), tensors (height,width) or (channels,height,width), and each the
            other way round where it can be nothing else. One channel is grey, four are RGBA, of which A is dropped.
            Values are bytes or other integers of 0..255; uint16 of 0..65535; bool; floats of 0..1, or of 0..255 if
            one is 2 or more.

    Returns:
        (height,width,3) uint8 RGB, upright as an EXIF orientation says.

    Raises:
        BadImageError: it is anything else, empty, or has values out of range.
    """
    remedy = "Give another picture."
    if isinstance(picture, (str, os.PathLike)):
        return np.asarray(reading.read_picture(str(os.fspath(picture)), remedy))
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "") or "without a name"
        picture = np.asarray(reading.to_rgb(picture, name, remedy))
    if isinstance(picture, Tensor):
        pixels = _to_array(picture)
    elif isinstance(picture, np.ndarray):
        pixels = np.asarray(picture)  # without the rules of matrices
    else:
        raise BadImageError(f"The picture is a {type(picture).__name__}; expected {_ALLOWED}.")
    pixels = _channels_last(pixels, channels_first=isinstance(picture, Tensor))
    pixels = _to_bytes(pixels[:, :, :3])
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _to_array(tensor: Tensor) -> np.ndarray:
    try:
        return (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantised, without values
        raise BadImageError(f"The picture is a tensor that is no array ({error}); expected {_ALLOWED}.") from error


def _channels_last(pixels: np.ndarray, *, channels_first: bool) -> np.ndarray:
    """(height,width,channels) of what may have its channels first, or none."""
    shape = pixels.shape
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    can_be_first, can_be_last = (pixels.ndim == 3 and pixels.shape[axis] in _CHANNELS for axis in (0, -1))
    if 0 in shape or not (can_be_first or can_be_last):
        raise BadImageError(f"The picture has the shape {shape}; expected {_ALLOWED}.")
    if can_be_first and len(shape) == 3 and (channels_first or not can_be_last):
        pixels = pixels.transpose(1, 2, 0)
    return pixels


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Scale values of any kind to uint8."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "uif":
        raise BadImageError(f"The picture has values of the type {pixels.dtype}; expected {_ALLOWED}.")
    low, high = pixels.min(), pixels.max()
    if pixels.dtype == np.uint16 and (high > 255 or high == 0):
        return (pixels >> 8).astype(np.uint8)
    # Floats between 1 and 2 may be of either scale, and so may small numbers of 16 bits.
    is_fraction = pixels.dtype.kind == "f" and (pixels % 1 != 0).any()
    is_either = pixels.dtype == np.uint16 or (is_fraction and MOST_OF_ONE < high < 2)
    if is_either or not (low >= 0 and high <= 255):  # NaN is neither
        raise BadImageError(
            f"The picture has values of {low:g}..{high:g} in {pixels.dtype}; expected uint8, other integers or floats "
            "of 0..255, floats of 0..1, or uint16 up to 65535: scale or clip them, make uint8 of them, and leave "
            "normalisation to the model."
        )
    if pixels.dtype.kind == "f" and high <= MOST_OF_ONE:
        return np.rint(pixels.clip(max=1) * 255.0).astype(np.uint8)
    return np.rint(pixels).astype(np.uint8)


def _load_all(model: nn.Module, path: str) -> None:
    """Load weights that must hold every parameter: those of a backbone alone would give random pictures."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    Checkpointer(model).load(path)
    unset = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    if unset:
        raise InputError(
            f"Weights {path} leave {len(unset)} parameters without a value (the first is {unset[0]}); expected a "
            "trained model, not a backbone: set --weights or MODEL.WEIGHTS to one."
        )
