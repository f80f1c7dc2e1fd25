"""What evaluation and prediction do beyond one pass of the network: test-time augmentation, windows, and retries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskformer.data.datasets.classes import check_classes
from maskformer.inference import QueryAverage, SlidingWindow, View, plan_views, resize_maps
from maskformer.meta_arch import InferenceOptions, MaskClassifier
from maskformer.model_inputs import check_images, output_size
from maskformer.runs.failures import describe_image, is_out_of_memory
from maskformer.structures import InputError, RunError

from .accelerator import Accelerator

logger = logging.getLogger(__name__)


def apply_test_time_options(cfg: CfgNode, model: nn.Module) -> tuple[CfgNode, nn.Module]:
    """The model as evaluation and prediction run it, and the configuration that its images are loaded with.

    Args:
        cfg: ``TEST.AUG``, ``MODEL.MASK_FORMER.TEST.SLIDING_WINDOW`` and ``_OVERLAP`` are read.
        model: with its weights; it may be one that several processes train.

    Returns:
        Both as they are where neither option is on. With augmentation, images are loaded at their own size.

    Raises:
        InputError: the model does not give a result of a kind that the options support.
    """
    aug, test = cfg.TEST.AUG, cfg.MODEL.MASK_FORMER.TEST
    if not aug.ENABLED and not test.SLIDING_WINDOW:
        return cfg, model
    window = SlidingWindow(tuple(test.SLIDING_WINDOW), test.SLIDING_WINDOW_OVERLAP) if test.SLIDING_WINDOW else None
    if isinstance(model, DistributedDataParallel):
        model = model.module
    _check_support(model, window)
    if not aug.ENABLED:
        return cfg, TestTimeModel(model=model, window=window)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0  # no resizing: views are made of the original
    cfg.freeze()
    views = partial(plan_views, min_sizes=tuple(aug.MIN_SIZES), max_size=aug.MAX_SIZE, flip=aug.FLIP)
    return cfg, TestTimeModel(model=model, views=views, window=window)


def _check_support(model: nn.Module, window: SlidingWindow | None) -> None:
    if not isinstance(model, (MaskClassifier, SemanticSegmentor)):
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {type(model).__name__}; TEST.AUG.ENABLED and "
            "MODEL.MASK_FORMER.TEST.SLIDING_WINDOW expect MaskFormer, EoMT or SemanticSegmentor: switch them off."
        )
    if window is None or not isinstance(model, MaskClassifier):
        return
    options = model.inference
    if options.panoptic_on or options.instance_on:
        raise InputError(
            "MODEL.MASK_FORMER.TEST.SLIDING_WINDOW gives semantic results only, because a segment may reach over many "
            "windows: set PANOPTIC_ON and INSTANCE_ON of MODEL.MASK_FORMER.TEST to False, or SLIDING_WINDOW to ()."
        )


@contextmanager
def inference_options(model: nn.Module, **changes: Any) -> Iterator[None]:
    """In the ``with`` block, a ``MaskClassifier`` has other ``InferenceOptions``.

    Args:
        model: may be one that several processes train, or a ``TestTimeModel``; others stay as they are.
        **changes: of the options. With ``semantic_as_labels``, semantic results take a K-th of the memory.
    """
    model = innermost(model)
    if not isinstance(model, MaskClassifier):
        yield
        return
    options = model.inference
    model.inference = replace(options, **changes)
    try:
        yield
    finally:
        model.inference = options


def innermost(model: nn.Module) -> nn.Module:
    """The model itself, of one that is shown images by others: ``DistributedDataParallel``, ``TestTimeModel``, ..."""
    while isinstance(model, (DistributedDataParallel, TestTimeModel, RetryingModel)):
        model = model.module if isinstance(model, DistributedDataParallel) else model.model
    return model


class Tiles(NamedTuple):
    """How finely an image is divided once memory did not suffice.

    Attributes:
        band_divisor: of the bands of rows in which results are computed; results stay the same.
        window_divisor: of both sides of the image, for the windows that the network sees; 1: the whole image.
    """

    band_divisor: int
    window_divisor: int = 1


SMALLER_TILES = (Tiles(2), Tiles(4), Tiles(8, window_divisor=2), Tiles(8, window_divisor=4))


class RetryingModel(nn.Module):
    """A model that tries again, in smaller tiles, on images for which memory does not suffice.

    Bands of rows become smaller first; then a model that gives semantic results alone sees windows of half, then of a
    quarter of the image's sides, whose scores differ a little from those of the whole image.

    Args:
        model: what evaluation would run, in evaluation mode.
        accelerator: where it is.
        overlap: the least fraction of a window that the next one shares.
    """

    def __init__(self, *, model: nn.Module, accelerator: Accelerator, overlap: float = 0.33):
        super().__init__()
        self.model = model
        self.accelerator = accelerator
        self.overlap = overlap
        self.training = model.training  # evaluation restores the mode that it finds here

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Segment images; inputs and results are those of the model.

        Raises:
            RunError: memory does not suffice for the smallest tiles either.
        """
        for tiles in (Tiles(1), *SMALLER_TILES):
            if tiles.window_divisor > 1 and not self._may_slide:
                continue
            results = self._try(batched_inputs, tiles)
            if results is not None:
                return results
            # Here, where the error is gone and with it what its traceback held.
            self.accelerator.release_unused_memory()
            logger.warning(
                "Out of memory on %s for %s in %s; trying smaller tiles",
                self.accelerator.device, ", ".join(map(describe_image, batched_inputs)), tiles,
            )  # fmt: skip
        images = ", ".join(map(describe_image, batched_inputs))
        raise RunError(
            f"Out of memory on {self.accelerator.device} in evaluation, in the smallest tiles too: {images}. Lower "
            "INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST; or, for semantic results alone, set "
            "MODEL.MASK_FORMER.TEST.SLIDING_WINDOW."
        )

    @property
    def _may_slide(self) -> bool:
        model = innermost(self.model)
        if not isinstance(model, MaskClassifier) or isinstance(self.model, TestTimeModel):
            return False
        return not (model.inference.panoptic_on or model.inference.instance_on)

    def _try(self, batched_inputs: list[dict[str, Any]], tiles: Tiles) -> list[dict[str, Any]] | None:
        try:
            with inference_options(self.model, band_divisor=tiles.band_divisor):
                if tiles.window_divisor == 1:
                    return self.model(batched_inputs)
                return [self._slide(example, tiles.window_divisor) for example in batched_inputs]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _slide(self, example: dict[str, Any], divisor: int) -> dict[str, Any]:
        rows, columns = example["image"].shape[-2:]
        window = SlidingWindow(size=(-(-rows // divisor), -(-columns // divisor)), overlap=self.overlap)
        return TestTimeModel(model=innermost(self.model), window=window)([example])[0]


class TestTimeModel(nn.Module):
    """A model that looks at an image several times, and stands where the model itself does in evaluation.

    Args:
        model: ``MaskClassifier``, or a ``SemanticSegmentor``, which gives semantic results only.
        views: (rows, columns) of an image -> how it is shown, the largest view first, not flipped; None: as it comes.
        window: divides each view, for semantic results only; None: views are whole.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        views: Callable[[tuple[int, int]], list[View]] | None = None,
        window: SlidingWindow | None = None,
    ):
        super().__init__()
        self.model = model
        self.views = views or (lambda image_size: [View(image_size)])
        self.window = window
        self.training = model.training  # evaluation restores the mode that it finds here

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Segment images one by one; inputs and results are those of the model."""
        check_images(batched_inputs, len(self.model.get_buffer("pixel_mean")))
        return [self._segment(example) for example in batched_inputs]

    def _segment(self, example: dict[str, Any]) -> dict[str, Any]:
        image: Tensor = example["image"]
        image_size = (image.shape[-2], image.shape[-1])
        output = dict(zip(("height", "width"), output_size(example, image_size)))
        # Whose queries are averaged, see ``maskformer.inference.tta``; of others, scores alone.
        model = self.model if isinstance(self.model, MaskClassifier) and self.window is None else None
        options = InferenceOptions() if model is None else model.inference
        views = self.views(image_size)
        total: Tensor | None = None
        queries: QueryAverage | None = None
        for view in views:
            shown = {"image": view.show(image), **output}
            if model is None:
                scores = self._scores(shown)
            else:
                (prediction,) = model.predict([shown])
                if options.semantic_on:
                    scores = model.semantic_scores(*prediction)
                if queries is not None:
                    queries.add(*prediction, flipped=view.flipped)
                elif options.panoptic_on or options.instance_on:  # the largest view, not flipped
                    queries = QueryAverage(*prediction)
            if options.semantic_on:
                scores = view.restore(scores)
                total = scores.clone() if total is None else total.add_(scores)
        results: dict[str, Any] = {}
        if total is not None:
            gives_labels = isinstance(self.model, MaskClassifier) and self.model.inference.semantic_as_labels
            mean = total.div_(len(views))
            results["sem_seg"] = mean.max(0).indices.int() if gives_labels else mean
        if model is not None and queries is not None:
            results |= model.segment_results(queries.class_logits, queries.mask_logits, queries.geometry)
        return results

    def _scores(self, shown: dict[str, Any]) -> Tensor:
        """(K,height,width) scores of one view, in windows where it is larger than one."""
        if self.window is None or self.window.holds(shown["image"]):
            return self._scores_of(shown)
        scores = self.window.average(shown["image"], lambda part: self._scores_of({"image": part}))
        return resize_maps(scores, (shown["height"], shown["width"]))

    def _scores_of(self, example: dict[str, Any]) -> Tensor:
        """(K,height,width) scores, also of a model that gives labels."""
        if not isinstance(self.model, MaskClassifier):
            return self.model([example])[0]["sem_seg"]
        return self.model.semantic_scores(*self.model.predict([example])[0])


def check_test_classes(cfg: CfgNode, model: nn.Module) -> None:
    """Make sure, before a training and before an evaluation, that the model's classes are those of ``DATASETS.TEST``.

    Args:
        cfg: the whole config.
        model: with ``classes``, or of a user's own kind.

    Raises:
        InputError: they differ, or results need to know more of them than is known.
    """
    model = innermost(model)
    if isinstance(model, MaskClassifier) and cfg.DATASETS.TEST:
        model.check_classes()
    for name in cfg.DATASETS.TEST:
        check_classes(name, "DATASETS.TEST", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, getattr(model, "classes", None))
