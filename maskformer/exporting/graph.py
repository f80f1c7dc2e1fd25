"""What leaves the laboratory: pictures as they are in, results out, all of it tensors; for ``torch.export``.

The results are those of ``maskformer.inference``, of whole batches and without a branch on a value, so that one graph
serves all pictures; they have the size of the picture that the graph sees. A picture goes through the network once:
windows and test-time augmentation are outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.meta_arch import MaskClassifier
from maskformer.structures import InputError, check_choice

# What a graph gives for each task, in this order; of tasks that a model has on, the first is the default.
OUTPUTS = {
    "panoptic": ("segment_map", "segment_classes", "segment_scores"),
    "instance": ("scores", "labels", "masks"),
    "semantic": ("labels",),
    "queries": ("class_logits", "mask_logits"),
}
NO_CLASS = -1


def choose_task(model: nn.Module, task: str | None = None) -> str:
    """The task that is asked for, or else the first of panoptic, instance and semantic that the model has on.

    Args:
        model: ``MaskClassifier``, or a ``SemanticSegmentor``, which has "semantic" alone.
        task: one of ``OUTPUTS``, also one that the model has switched off.

    Raises:
        InputError: the model cannot do it, or has everything switched off.
    """
    if task is not None:
        check_choice(task, OUTPUTS, "task")
    if isinstance(model, SemanticSegmentor):
        if task not in ("semantic", None):
            raise InputError(f"task is {task!r}, but a SemanticSegmentor gives semantic results alone.")
        return "semantic"
    if not isinstance(model, MaskClassifier):
        raise InputError(f"A {type(model).__name__} is not exported: expected MaskFormer, EoMT or SemanticSegmentor.")
    chosen = task or next((name for name in OUTPUTS if getattr(model.inference, f"{name}_on", False)), None)
    if chosen is None:
        raise InputError("The model has every result switched off (MODEL.MASK_FORMER.TEST): name a task.")
    if chosen in ("panoptic", "instance"):
        _ = model.thing_class_ids
    return chosen


class SegmentationGraph(nn.Module):
    """A model from pictures to the results of one task.

    The network computes in the type of its parameters, all else in float32.

    Args:
        model: in evaluation mode; parameters are shared with it.
        task: see ``choose_task``.
        channel_order: which of red, green and blue each channel of the model's images is.

    Raises:
        InputError: the model cannot do the task.
    """

    network: nn.Module
    pixel_mean: Tensor
    pixel_std: Tensor
    is_thing: Tensor

    def __init__(self, model: nn.Module, task: str | None = None, *, channel_order: Sequence[int] = (0, 1, 2)):
        super().__init__()
        self.task = choose_task(model, task)
        self._channel_order = list(channel_order)
        for name in ("pixel_mean", "pixel_std"):
            self.register_buffer(name, model.get_buffer(name).float())
        if (channels := len(self.pixel_mean)) != 3:
            raise InputError(f"MODEL.PIXEL_MEAN has {channels} numbers, but exported files take RGB: expected three.")
        num_classes, things = 0, frozenset[int]()
        if isinstance(model, MaskClassifier):
            self.network, self._options = model.network, model.inference  # type: ignore[assignment]
            self._divisor, self._pads_with_black = model.size_divisibility, model.pads_with_black
            if self.task in ("panoptic", "instance"):
                num_classes, things = model.criterion.num_classes, model.thing_class_ids
        else:
            self.network, self._pads_with_black = _PerPixel(model), False
            self._divisor = int(model.backbone.size_divisibility)  # type: ignore[union-attr, arg-type]
        is_thing = torch.tensor([index in things for index in range(num_classes + 1)])  # the last is "no object"
        self.register_buffer("is_thing", is_thing.to(self.pixel_mean.device))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Segment a batch.

        Args:
            images: (B,3,height,width) uint8 RGB.

        Returns:
            By the names in ``OUTPUTS``. Panoptic: see ``panoptic_batch``. Instance: see ``instance_batch``. Semantic:
            ``labels`` (B,height,width) int32, 0..K-1. Queries: (B,Q,K+1) class and (B,Q,h,w) mask logits, whose grid
            covers the padded picture.
        """
        return dict(zip(OUTPUTS[self.task], self._segment(images), strict=True))

    def _segment(self, images: Tensor) -> tuple[Tensor, ...]:
        size = images.shape[-2:]
        network_input = self._prepare(images)
        predicted = self.network(network_input.to(next(self.network.parameters()).dtype))
        if isinstance(predicted, Tensor):
            return (_best_class(_crop(predicted.float(), size)),)
        class_logits, mask_logits = (logits.float() for logits in predicted)
        if self.task == "queries":
            return class_logits, mask_logits
        padded_size = network_input.shape[-2:]
        upsampled = F.interpolate(mask_logits, padded_size, mode="bilinear", align_corners=False)
        upsampled = _crop(upsampled, size)
        if self.task == "semantic":
            return (semantic_batch(class_logits, upsampled),)
        if self.task == "instance":
            return instance_batch(
                class_logits, upsampled, is_thing=self.is_thing, max_instances=self._options.max_instances
            )
        return panoptic_batch(
            class_logits,
            upsampled,
            is_thing=self.is_thing,
            object_mask_threshold=self._options.object_mask_threshold,
            overlap_threshold=self._options.overlap_threshold,
            within_masks=self._options.segments_within_masks,
        )

    def _prepare(self, images: Tensor) -> Tensor:
        """Normalise and pad, as the models do."""
        in_order = self._channel_order == sorted(self._channel_order)
        ordered = (images if in_order else images[:, self._channel_order]).float()
        if self._pads_with_black:
            return (self._pad(ordered) - self.pixel_mean) / self.pixel_std
        return self._pad((ordered - self.pixel_mean) / self.pixel_std)

    def _pad(self, images: Tensor) -> Tensor:
        if self._divisor <= 1:
            return images
        rows, columns = ((length + self._divisor - 1) // self._divisor * self._divisor for length in images.shape[-2:])
        return F.pad(images, (0, columns - images.shape[3], 0, rows - images.shape[2]))


class _PerPixel(nn.Module):
    """What a ``SemanticSegmentor`` computes of normalised images: (B,K,H,W) logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.sem_seg_head = (model.get_submodule(name) for name in ("backbone", "sem_seg_head"))

    def forward(self, images: Tensor) -> Tensor:
        logits, _ = self.sem_seg_head(self.backbone(images))
        return logits


def _crop(maps: Tensor, size: Sequence[int]) -> Tensor:
    """The top left of (B,N,H,W); by ``narrow``, whose result has the very size for the exporter."""
    return maps.narrow(2, 0, size[0]).narrow(3, 0, size[1])


def _best_class(scores: Tensor) -> Tensor:
    """(B,K,height,width) -> (B,height,width) int32."""
    return scores.argmax(1).int()


def semantic_batch(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """(B,Q,K+1) and (B,Q,height,width) logits -> (B,height,width) int32; see ``semantic_labels``."""
    class_probs = class_logits.softmax(-1)[..., :-1]
    scores = class_probs.mT @ mask_logits.sigmoid().flatten(2)
    return _best_class(scores.unflatten(2, mask_logits.shape[2:]))


def instance_batch(
    class_logits: Tensor, mask_logits: Tensor, *, is_thing: Tensor, max_instances: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``instance_inference`` gives of each image, with a fixed number of instances.

    Args:
        class_logits: (B,Q,K+1) logits.
        mask_logits: (B,Q,height,width) logits.
        is_thing: (K+1,) bool.
        max_instances: N, or all Q x K pairs where these are fewer.

    Returns:
        ``scores`` (B,N), best first; ``labels`` (B,N) int32; ``masks`` (B,N,height,width) bool. Pairs whose class is no
        thing come last, with score 0 and label -1.
    """
    num_queries, num_classes = class_logits.shape[1], class_logits.shape[2] - 1
    class_probs = class_logits.softmax(-1)[..., :-1].flatten(1)
    class_scores, pairs = class_probs.topk(min(max_instances, num_queries * num_classes))
    queries, classes = torch.div(pairs, num_classes, rounding_mode="floor"), pairs % num_classes
    masks = mask_logits > 0
    inside = torch.where(masks, mask_logits.sigmoid(), 0.0).sum((2, 3))
    mask_scores = inside / (masks.sum((2, 3), dtype=torch.int32).float() + 1e-6)  # as the released models
    has_instances = is_thing[classes]
    # Below every score until they are sorted: that of an empty mask is 0.
    scores = torch.where(has_instances, class_scores * mask_scores.gather(1, queries), -1.0)
    scores, order = scores.topk(scores.shape[1])
    labels = torch.where(has_instances, classes, NO_CLASS).gather(1, order).int()
    first = torch.arange(class_logits.shape[0], device=queries.device)[:, None] * num_queries
    chosen = masks.flatten(0, 1)[queries.gather(1, order) + first]
    return scores.clamp(min=0), labels, chosen


def panoptic_batch(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    is_thing: Tensor,
    object_mask_threshold: float,
    overlap_threshold: float,
    within_masks: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``panoptic_inference`` gives of each image, in tables of Q rows.

    Args:
        class_logits: (B,Q,K+1) logits.
        mask_logits: (B,Q,height,width) logits.
        is_thing: (K+1,) bool.
        object_mask_threshold: see ``panoptic_inference``.
        overlap_threshold: likewise.
        within_masks: likewise.

    Returns:
        ``segment_map`` (B,height,width) int32: 0 where there is no segment, else one more than the segment's row in
        ``segment_classes`` (B,Q) int32, -1 in rows without a segment, and ``segment_scores`` (B,Q), there 0.
    """
    scores, classes = class_logits.softmax(-1).max(-1)
    kept = (classes != class_logits.shape[2] - 1) & (scores > object_mask_threshold)
    mask_probs = mask_logits.sigmoid()
    weighted = torch.where(kept[..., None, None], mask_probs * scores[..., None, None], -1.0)
    owner = weighted.argmax(1, keepdim=True)  # (B,1,height,width)
    owner_inside = mask_probs.gather(1, owner).flatten(1) >= 0.5
    owner = owner.flatten(1)
    predicted_area = (mask_probs >= 0.5).sum((2, 3), dtype=torch.int32)
    visible_area = torch.zeros_like(predicted_area).scatter_add(1, owner, torch.ones_like(owner, dtype=torch.int32))
    stays = kept & (visible_area > 0) & (predicted_area > 0)
    stays = stays & (visible_area.float() / predicted_area.clamp(min=1).float() >= overlap_threshold)
    if within_masks:
        stays = stays & (torch.zeros_like(predicted_area).scatter_add(1, owner, owner_inside.int()) > 0)
    segment_of_query = _number_segments(stays, classes, is_thing[classes])
    segment_map = segment_of_query.gather(1, owner)
    if within_masks:
        segment_map = torch.where(owner_inside, segment_map, 0)
    numbers = torch.arange(1, class_logits.shape[1] + 1, device=classes.device)
    belongs = segment_of_query[:, None] == numbers[:, None]  # (B, segments, queries)
    segment_classes = torch.where(belongs, classes[:, None], NO_CLASS).amax(2)
    segment_scores = torch.where(belongs, scores[:, None], 0.0).amax(2)
    return segment_map.unflatten(1, mask_logits.shape[2:]).int(), segment_classes.int(), segment_scores


def _number_segments(stays: Tensor, classes: Tensor, is_thing: Tensor) -> Tensor:
    """(B,Q) each -> (B,Q) int64: 1, 2, ... in order of queries, one number for a stuff class; 0: it does not stay."""
    num_queries = stays.shape[1]
    queries = torch.arange(num_queries, device=classes.device)
    alike = (classes[:, None] == classes[..., None]) & stays[:, None] & ~is_thing[..., None]
    alike = alike | (queries == queries[:, None])
    first = torch.where(alike, queries, num_queries).amin(2)  # of its segment
    numbers = (stays & (first == queries)).long().cumsum(1)
    return torch.where(stays, numbers.gather(1, first), 0)
