"""The models: normalise -> network -> losses (training) or results (inference). Wiring only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.data.datasets.classes import resolve_classes
from maskformer.inference import (
    Geometry,
    instance_inference,
    kept_queries,
    panoptic_inference,
    semantic_inference,
    semantic_labels,
    top_pairs,
)
from maskformer.losses import DenseMasks, HungarianMatcher, PointMasks, SetCriterion
from maskformer.model_inputs import check_images, output_size, read_targets
from maskformer.modeling import (
    EoMTNetwork,
    MaskFormerHead,
    MaskFormerNetwork,
    build_backbone_by_name,
    build_eomt_network,
)
from maskformer.structures import Classes, InputError, MaskPredictions, SegmentMasks, Targets


@dataclass(frozen=True)
class InferenceOptions:
    """Which results a model gives, and how; the keys are those of ``MODEL.MASK_FORMER.TEST``.

    Attributes:
        semantic_on: give "sem_seg".
        panoptic_on: give "panoptic_seg".
        instance_on: give "instances".
        semantic_as_labels: "sem_seg" is a map of labels, not of scores.
        segment_scores: segments of "panoptic_seg" have a ``score``, the probability of their class.
        object_mask_threshold: see ``panoptic_inference``.
        overlap_threshold: see ``panoptic_inference``.
        segments_within_masks: likewise, ``within_masks``.
        restore_masks_first: see ``semantic_inference``; always so with panoptic or instance output.
        max_instances: see ``instance_inference``.
        band_divisor: see ``Geometry``.
    """

    semantic_on: bool = True
    panoptic_on: bool = False
    instance_on: bool = False
    semantic_as_labels: bool = False
    segment_scores: bool = False
    object_mask_threshold: float = 0.0
    overlap_threshold: float = 0.0
    segments_within_masks: bool = False
    restore_masks_first: bool = False
    max_instances: int = 100
    band_divisor: int = 1


class MaskClassifier(nn.Module, ABC):
    """Segments images semantically, panoptically and by instance, with one set of masks and classes.

    A subclass gives its network: ``predict_layers``, ``encode`` and ``compose``.

    Args:
        criterion: predictions and targets -> losses.
        pixel_mean: three values in the images' channel order, 0..255.
        pixel_std: likewise.
        size_divisibility: inputs are padded to a multiple of it, in pixels; 0: only to the batch's largest image.
        inference: which results to give.
        classes: what is known of the classes; panoptic and instance results need to know which are things.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    pads_with_black: ClassVar[bool] = False  # also for training; else images are padded with the mean

    def __init__(
        self,
        *,
        criterion: SetCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
        inference: InferenceOptions | None = None,
        classes: Classes | None = None,
    ):
        super().__init__()
        self.criterion = criterion
        self.size_divisibility = size_divisibility
        self.inference = inference or InferenceOptions()
        self.classes = classes  # of a checkpoint that is loaded, where the datasets are not known
        # Not persistent: released checkpoints do not hold them.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @abstractmethod
    def predict_layers(self, images: Tensor) -> MaskPredictions:
        """(B,3,H,W) normalised images -> what losses are taken of."""

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,3,H,W) normalised images -> what the last layer's masks are made of: see ``MaskFormerHead.encode``."""

    @abstractmethod
    def compose(
        self, encoded: tuple[Tensor, Tensor, Tensor], select: Callable[[Tensor], Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """What ``encode`` gave -> class and mask logits, image by image: see ``MaskFormerHead.compose``."""

    @property
    def thing_class_ids(self) -> frozenset[int]:
        """The classes that are counted one by one.

        Raises:
            InputError: that is not known.
        """
        if self.classes is not None and self.classes.things is not None:
            return self.classes.things
        silent = "no dataset of DATASETS is known here" if self.classes is None else f"{self.classes.source} is silent"
        raise InputError(
            "Which classes are things is not known, which MODEL.MASK_FORMER.TEST.PANOPTIC_ON and INSTANCE_ON need: "
            f"{silent}, and no weights said it (maskformer.checkpoint.Checkpointer reads it from ours, Detectron2's "
            "does not). Name a dataset in DATASETS.TRAIN or DATASETS.TEST that DATASETS.OWN describes, or that is "
            "registered with class names and thing_dataset_id_to_contiguous_id in its metadata; or set both switches "
            "to False."
        )

    def check_classes(self) -> None:
        """Raise an ``InputError`` now, and not at the first image, if results need to know more of the classes."""
        if self.inference.panoptic_on or self.inference.instance_on:
            _ = self.thing_class_ids

    @property
    def device(self) -> torch.device:
        """Where inputs are moved to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Train on, or segment, a batch.

        Args:
            batched_inputs: one dict an image: ``image`` (3, rows, columns) uint8 or floats of 0..255; to train,
                ``instances`` as ``read_targets`` takes them; to infer, ``height`` and ``width`` of the result, the
                image's own where absent.

        Returns:
            Training: weighted losses by name. Inference: one dict an image, with those switched on of ``sem_seg``
            (K,height,width) scores, or (height,width) int32 labels where the options say so, ``panoptic_seg``
            ((height,width) int32 map, segments_info) and ``instances``.

        Raises:
            InputError: an example is not as described; see ``model_inputs``.
        """
        if self.training:
            images = self._normalise(batched_inputs)
            padded_size = tuple(images.tensor.shape[-2:])
            targets = [self._targets(example, padded_size) for example in batched_inputs]
            return self.criterion(self.predict_layers(images.tensor), targets)
        select = None if self.inference.semantic_on else self._queries_of_segments
        return [self._results(*prediction) for prediction in self.predict(batched_inputs, select)]

    def predict(
        self, batched_inputs: list[dict[str, Any]], select: Callable[[Tensor], Tensor] | None = None
    ) -> list[tuple[Tensor, Tensor, Geometry]]:
        """What the last decoder layer says of each image, before it becomes results.

        Args:
            batched_inputs: as for inference.
            select: see ``MaskFormerHead.compose``.

        Returns:
            One triple an image: (Q,K+1) class logits, (Q,h,w) mask logits, and its sizes; only of selected queries.
        """
        images = self._normalise(batched_inputs)
        padded_size = tuple(images.tensor.shape[-2:])
        geometries = [
            Geometry(
                padded_size=padded_size,
                image_size=image_size,
                output_size=output_size(example, image_size),
                band_divisor=self.inference.band_divisor,
            )
            for example, image_size in zip(batched_inputs, images.image_sizes)
        ]
        batch = [images.tensor]
        del images  # the network may free its input
        predictions = self.compose(self.encode(batch.pop()), select)
        return [(*pair, geometry) for pair, geometry in zip(predictions, geometries)]

    def _normalise(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        check_images(batched_inputs, len(self.pixel_mean))
        raw = [example["image"].to(self.device, non_blocking=True) for example in batched_inputs]
        normalised = [((image - self.pixel_mean) / self.pixel_std).to(self.pixel_mean.dtype) for image in raw]
        batch = ImageList.from_tensors(normalised, self.size_divisibility)
        if self.pads_with_black:
            black = -self.pixel_mean / self.pixel_std
            for image, (rows, columns) in zip(batch.tensor, batch.image_sizes):
                image[:, rows:] = black
                image[:, :, columns:] = black
        batch.tensor = batch.tensor.contiguous(memory_format=_memory_format(self.device, self.training))
        return batch

    def _targets(self, example: dict[str, Any], padded_size: tuple[int, int]) -> Targets:
        labels, masks = read_targets(example, self.criterion.num_classes)
        rows, columns = example["image"].shape[-2:]
        padding = (0, padded_size[1] - columns, 0, padded_size[0] - rows)
        masks = masks.to(self.device, non_blocking=True)
        # Of an id map, pad the map, not G masks.
        padded = masks.pad(padding).tensor if isinstance(masks, SegmentMasks) else F.pad(masks.bool(), padding)
        return Targets(labels=labels.to(self.device, non_blocking=True), masks=padded)

    def _results(self, class_logits: Tensor, mask_logits: Tensor, geometry: Geometry) -> dict[str, Any]:
        results: dict[str, Any] = {}
        if self.inference.semantic_on:
            as_labels = self.inference.semantic_as_labels
            results["sem_seg"] = self.semantic_scores(class_logits, mask_logits, geometry, as_labels=as_labels)
        return {**results, **self.segment_results(class_logits, mask_logits, geometry)}

    def semantic_scores(
        self, class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, *, as_labels: bool = False
    ) -> Tensor:
        """(K,height,width) scores, or (height,width) labels, from what ``predict`` says of one image."""
        options = self.inference
        restore_first = options.restore_masks_first or options.panoptic_on or options.instance_on
        infer = semantic_labels if as_labels else semantic_inference
        return infer(class_logits, mask_logits, geometry, restore_masks_first=restore_first)

    def _queries_of_segments(self, class_logits: Tensor) -> Tensor:
        """(N,) int64: the queries of (Q,K+1) class logits that ``segment_results`` reads masks of."""
        options = self.inference
        wanted = torch.zeros(len(class_logits), dtype=torch.bool, device=class_logits.device)
        if options.panoptic_on:
            wanted[kept_queries(class_logits, options.object_mask_threshold)] = True
        if options.instance_on:
            _, queries, _ = top_pairs(class_logits, None, options.max_instances)  # also those that are left out after
            wanted[queries] = True
        return wanted.nonzero()[:, 0]

    def segment_results(self, class_logits: Tensor, mask_logits: Tensor, geometry: Geometry) -> dict[str, Any]:
        """``panoptic_seg`` and ``instances``, where switched on, from what ``predict`` says of one image."""
        options = self.inference
        results: dict[str, Any] = {}
        if options.panoptic_on:
            panoptic = panoptic_inference(
                class_logits,
                mask_logits,
                geometry,
                thing_class_ids=self.thing_class_ids,
                object_mask_threshold=options.object_mask_threshold,
                overlap_threshold=options.overlap_threshold,
                within_masks=options.segments_within_masks,
            )
            if options.segment_scores:
                for segment, score in zip(panoptic.segments_info, panoptic.scores, strict=True):
                    segment["score"] = score
            results["panoptic_seg"] = (panoptic.segment_map, panoptic.segments_info)
        if options.instance_on:
            results["instances"] = instance_inference(
                class_logits,
                mask_logits,
                geometry,
                thing_class_ids=self.thing_class_ids,
                max_instances=options.max_instances,
            )
        return results


@META_ARCH_REGISTRY.register()
class MaskFormer(MaskClassifier):
    """MaskFormer and Mask2Former: a backbone, and a head with a pixel decoder and a query decoder.

    Args:
        backbone: images -> features.
        sem_seg_head: features -> ``MaskPredictions``.
        size_divisibility: see ``MaskClassifier``; < 0: the backbone's own.
        **options: see ``MaskClassifier``.

    Source: MaskFormer (arXiv 2107.06278), section 3.
    """

    @configurable
    def __init__(
        self, *, backbone: Backbone, sem_seg_head: MaskFormerHead, size_divisibility: int = 32, **options: Any
    ):
        super().__init__(
            size_divisibility=backbone.size_divisibility if size_divisibility < 0 else size_divisibility, **options
        )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that a configuration describes."""
        backbone = build_backbone_by_name(cfg)
        head = build_sem_seg_head(cfg, backbone.output_shape())
        decoder = head.predictor
        options = _shared_options(
            cfg, compares_points=decoder.compares_points, segments_within_masks=decoder.segments_within_masks
        )
        return {"backbone": backbone, "sem_seg_head": head, **options}

    @property
    def network(self) -> MaskFormerNetwork:
        """The network alone, with this model's parameters: normalised images -> class logits, mask logits."""
        return MaskFormerNetwork(self.backbone, self.sem_seg_head)

    def predict_layers(self, images: Tensor) -> MaskPredictions:
        """See ``MaskClassifier``."""
        return self.sem_seg_head(self.backbone(images))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``MaskClassifier``."""
        features = self.backbone(images)
        del images  # the head needs the memory
        return self.sem_seg_head.encode(features)

    def compose(
        self, encoded: tuple[Tensor, Tensor, Tensor], select: Callable[[Tensor], Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """See ``MaskClassifier``."""
        return self.sem_seg_head.compose(encoded, select)


@META_ARCH_REGISTRY.register()
class EoMT(MaskClassifier):
    """EoMT: a plain vision transformer, which queries enter before its last blocks.

    Args:
        network: images -> predictions.
        size_divisibility: see ``MaskClassifier``; < 0: the patch size.
        delta_base: file or folder of the backbone that loaded weights are added to where they are differences.
        **options: see ``MaskClassifier``.

    Source: arXiv 2503.19108; see ``modeling.eomt``.
    """

    pads_with_black = True

    @configurable
    def __init__(self, *, network: EoMTNetwork, size_divisibility: int = -1, delta_base: str = "", **options: Any):
        patch_size = network.backbone.patch_size
        super().__init__(size_divisibility=patch_size if size_divisibility < 0 else size_divisibility, **options)
        self.network = network
        self.delta_base = delta_base

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that a configuration describes."""
        network = build_eomt_network(cfg)
        options = _shared_options(
            cfg,
            compares_points=True,
            segments_within_masks=True,
            last_layer_first=False,
            most_masks=network.q.num_embeddings,
        )
        return {"network": network, "delta_base": cfg.MODEL.EOMT.DELTA_BASE, **options}

    @property
    def backbone(self) -> nn.Module:
        """The vision transformer."""
        return self.network.backbone

    def predict_layers(self, images: Tensor) -> MaskPredictions:
        """See ``MaskClassifier``."""
        return self.network.predict_layers(images)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``MaskClassifier``."""
        return self.network.encode(images)

    def compose(
        self, encoded: tuple[Tensor, Tensor, Tensor], select: Callable[[Tensor], Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """See ``MaskClassifier``."""
        return self.network.compose(encoded, select)


def _memory_format(device: torch.device, training: bool) -> torch.memory_format:
    """How images lie in memory, and with them the features that convolutions make: the faster way of a device.

    On a CPU, channels last is as fast or faster forward, but without AVX-512 much slower backward. It is looked up and
    not measured at the start, so that a training that is resumed computes, bit for bit, as it did: docs/performance.md.
    """
    backward_pays = torch.backends.cpu.get_cpu_capability() == "AVX512"
    pays = device.type == "cpu" and (backward_pays or not training)
    return torch.channels_last if pays else torch.contiguous_format


def _shared_options(
    cfg: CfgNode,
    *,
    compares_points: bool,
    segments_within_masks: bool,
    last_layer_first: bool = True,
    most_masks: int | None = None,
) -> dict[str, Any]:
    """Arguments of ``MaskClassifier``; the switches are what a network's authors did."""
    node = cfg.MODEL.MASK_FORMER
    weights = {"class_weight": node.CLASS_WEIGHT, "mask_weight": node.MASK_WEIGHT, "dice_weight": node.DICE_WEIGHT}
    return {
        "criterion": SetCriterion(
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            matcher=HungarianMatcher(**weights),
            no_object_weight=node.NO_OBJECT_WEIGHT,
            masks=_mask_comparison(node, compares_points, last_layer_first),
            most_masks=most_masks,
            **weights,
        ),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "size_divisibility": node.SIZE_DIVISIBILITY,
        "inference": _inference_options(cfg, segments_within_masks),
        "classes": resolve_classes(cfg),
    }


def _mask_comparison(node: CfgNode, compares_points: bool, last_layer_first: bool) -> DenseMasks | PointMasks:
    """How masks are compared, which ``MODEL.MASK_FORMER.MASK_LOSS`` says."""
    as_published = "points" if compares_points else "dense"
    if (as_published if node.MASK_LOSS == "auto" else node.MASK_LOSS) == "dense":
        return DenseMasks()
    ratios = node.OVERSAMPLE_RATIO, node.IMPORTANCE_SAMPLE_RATIO
    return PointMasks(node.TRAIN_NUM_POINTS, *ratios, last_layer_first=last_layer_first)


def _inference_options(cfg: CfgNode, segments_within_masks: bool) -> InferenceOptions:
    test = cfg.MODEL.MASK_FORMER.TEST
    return InferenceOptions(
        semantic_on=test.SEMANTIC_ON,
        panoptic_on=test.PANOPTIC_ON,
        instance_on=test.INSTANCE_ON,
        semantic_as_labels=test.SEM_SEG_LABELS,
        object_mask_threshold=test.OBJECT_MASK_THRESHOLD,
        overlap_threshold=test.OVERLAP_THRESHOLD,
        segments_within_masks=segments_within_masks,
        restore_masks_first=test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def know_classes(model: nn.Module, cfg: CfgNode) -> None:
    """Give ``classes`` to a model of Detectron2's own architectures (the per-pixel baselines'), as ours has them.

    Args:
        model: what ``build_model(cfg)`` gave.
        cfg: see ``resolve_classes``.
    """
    if not hasattr(model, "classes"):
        model.classes = resolve_classes(cfg)  # type: ignore[assignment]
