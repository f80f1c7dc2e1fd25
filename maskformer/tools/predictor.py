"""One model and its preprocessing: an RGB image in, the model's results out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from maskformer.checkpoint import Checkpointer
from maskformer.engine.accelerator import with_device
from maskformer.engine.evaluation import check_test_classes
from maskformer.engine.testing import apply_test_time_options, innermost, labels_instead_of_scores
from maskformer.meta_arch import know_classes
from maskformer.structures import Classes, InputError

CHANNEL_ORDERS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}


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
    def __call__(self, image: np.ndarray, output_size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Segment one image.

        Args:
            image: (height,width,3) uint8 RGB.
            output_size: (height, width) of the results; the image's own by default.

        Returns:
            The model's results: those switched on of ``sem_seg`` (of MaskFormer: labels, not scores), ``panoptic_seg``
            and ``instances``.
        """
        height, width = image.shape[:2] if output_size is None else output_size
        resized = self._resize.get_transform(image).apply_image(image)[:, :, self._channel_order]
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        with labels_instead_of_scores(self.model):
            return self.model([{"image": pixels, "height": height, "width": width}])[0]


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
