"""Test-time augmentation and sliding windows: an image seen several times, and one answer from all that was seen.

Semantic scores of views have the same classes and pixels, so they are averaged. Queries of different views do not
correspond: query 7 may be the dog in one view and the grass in the next. For panoptic and instance results they are
brought into correspondence as the method itself does it in training, by a bipartite matching, and then averaged query
by query. That leaves one set of Q queries, from which the usual post-processing takes its result: there is no second
threshold, no mask is found twice because two views saw it, a query that most views do not see loses its probability,
and a single view gives exactly the plain result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor
from torch.nn import functional as F

from .resize import Geometry, Size

_LEAST_WEIGHT = 1e-6  # of a query that is surely "no object"; keeps a mean over such queries defined


@dataclass(frozen=True)
class View:
    """One way to show an image to the network.

    Attributes:
        size: (rows, columns) that the image is resized to.
        flipped: left and right are exchanged.
    """

    size: Size
    flipped: bool = False

    def show(self, image: Tensor) -> Tensor:
        """Resize and flip an image, (3,rows,columns) uint8, with the resizing that plain evaluation has."""
        rows, columns = image.shape[-2:]
        if (rows, columns) != self.size:
            resize = T.ResizeTransform(rows, columns, *self.size)
            resized = resize.apply_image(image.cpu().permute(1, 2, 0).numpy())
            image = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return image.flip(-1) if self.flipped else image

    def restore(self, maps: Tensor) -> Tensor:
        """Undo the flip on a result (...,height,width)."""
        return maps.flip(-1) if self.flipped else maps


def plan_views(image_size: Size, *, min_sizes: Sequence[int], max_size: int, flip: bool) -> list[View]:
    """List the views of an image, the largest first, each followed by its mirror image where wanted.

    Args:
        image_size: (rows, columns) of the image.
        min_sizes: lengths of the shorter side, in pixels.
        max_size: the longer side is at most this.
        flip: show mirror images too.
    """
    shapes = [T.ResizeShortestEdge.get_output_shape(*image_size, length, max_size) for length in min_sizes]
    sizes = sorted(shapes, key=lambda shape: shape[0] * shape[1], reverse=True)
    return [View(size, flipped) for size in sizes for flipped in ((False, True) if flip else (False,))]


@dataclass(frozen=True)
class SlidingWindow:
    """Divides an image larger than the network is good at; the keys are those of ``MODEL.MASK_FORMER.TEST``.

    Attributes:
        size: (height, width) in pixels of the resized image.
        overlap: the least fraction of a window that the next one shares, 0..1; a step is one pixel or more.
    """

    size: Size
    overlap: float

    def holds(self, image: Tensor) -> bool:
        """Whether one window is enough for an image (3,rows,columns)."""
        return image.shape[-2] <= self.size[0] and image.shape[-1] <= self.size[1]

    def average(self, image: Tensor, scores_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Average the scores of overlapping windows; a pixel's score is the mean over the windows that hold it.

        One window is computed at a time: memory grows with the image only by its scores.

        Args:
            image: (3,rows,columns).
            scores_of: a part of the image (3,y,x) -> its scores (K,y,x).

        Returns:
            (K,rows,columns) scores.
        """
        rows, columns = image.shape[-2:]
        total, count = None, torch.zeros(rows, columns)
        starts = (window_starts(*sides, self.overlap) for sides in zip((rows, columns), self.size))
        for top, left in itertools.product(*starts):
            window = slice(top, top + self.size[0]), slice(left, left + self.size[1])
            scores = scores_of(image[(slice(None), *window)])
            if total is None:
                total = scores.new_zeros(len(scores), rows, columns)
            total[(slice(None), *window)] += scores
            count[window] += 1
        assert total is not None  # there is always a window
        return total.div_(count.to(total))


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows start along one side, so that they cover it, evenly spread and as few as the overlap allows.

    Args:
        length: of the side, in pixels.
        window: likewise; 1 or more.
        overlap: see ``SlidingWindow``.

    Returns:
        Ascending, from 0 to ``length - window``; [0] where one window covers the side.
    """
    if window >= length:
        return [0]
    furthest_step = max(int(window * (1 - overlap) + 1e-6), 1)  # 10 * (1 - 0.8) is a little below 2
    last = length - window
    num_steps = math.ceil(last / furthest_step)
    return [last * step // num_steps for step in range(num_steps + 1)]


class QueryAverage:
    """The mean of the query sets of several views, on the mask grid of the first.

    A class probability is the mean over views. A mask logit is the mean weighted by the probability that the query is
    an object: a view in which it is "no object" has no say in where the object is.

    Args:
        class_logits: (Q,K+1) logits of the first view, which is not flipped.
        mask_logits: (Q,h,w) logits.
        geometry: the sizes of the first view.
    """

    def __init__(self, class_logits: Tensor, mask_logits: Tensor, geometry: Geometry):
        self.geometry = geometry
        self.mask_logits = mask_logits
        self._class_probs = class_logits.softmax(-1)
        self._mask_weights = _mask_weights(self._class_probs)
        self._count = 1

    @property
    def class_logits(self) -> Tensor:
        """(Q,K+1) logits whose softmax are the mean probabilities."""
        return self._class_probs.clamp(min=torch.finfo(self._class_probs.dtype).tiny).log()

    def add(self, class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, *, flipped: bool) -> None:
        """Take another view's queries, in any order.

        Args:
            class_logits: (Q,K+1) logits.
            mask_logits: (Q,h',w') logits.
            geometry: the sizes of this view.
            flipped: whether it shows the mirror image.
        """
        class_probs = class_logits.softmax(-1)
        grid_size = (self.mask_logits.shape[-2], self.mask_logits.shape[-1])
        mask_logits = resample_masks(mask_logits, geometry, self.geometry, grid_size, flipped=flipped)
        order = match_queries(self._class_probs, self.mask_logits, class_probs, mask_logits)
        class_probs, mask_logits = class_probs[order], mask_logits[order]
        self._count += 1
        self._class_probs = self._class_probs + (class_probs - self._class_probs) / self._count
        weights = _mask_weights(class_probs)
        self._mask_weights = self._mask_weights + weights
        share = (weights / self._mask_weights)[:, None, None]
        self.mask_logits = self.mask_logits + (mask_logits - self.mask_logits) * share


def _mask_weights(class_probs: Tensor) -> Tensor:
    return (1 - class_probs[:, -1]).clamp(min=_LEAST_WEIGHT)


def match_queries(
    class_probs: Tensor, mask_logits: Tensor, other_class_probs: Tensor, other_mask_logits: Tensor
) -> Tensor:
    """Find, for each query of one set, the query of another set that means the same segment.

    For a pair, let ``both`` be the geometric mean of the two probabilities to be an object, and ``agree`` the sum over
    classes of the geometric mean of the two class probabilities, times the IoU of the two binary masks. The assignment
    has the least sum of ``both - 2 * agree``. So two sure queries are taken for one segment if they have the same class
    and an IoU above 1/2, which is when panoptic quality calls two segments the same (arXiv 1801.00868, section 4.1);
    otherwise each is rather paired with a "no object". Of two equal sets, equal queries are paired, however unsure of
    their classes: no pair costs less than minus the arithmetic mean of its two object probabilities.

    Args:
        class_probs: (Q,K+1) probabilities.
        mask_logits: (Q,h,w) logits.
        other_class_probs: (Q,K+1) probabilities.
        other_mask_logits: (Q,h,w) logits.

    Returns:
        (Q,) int64: the other set's query for each query of the first.
    """
    from scipy.optimize import linear_sum_assignment  # here: it takes longer to import than all of maskformer

    both = ((1 - class_probs[:, -1])[:, None] * (1 - other_class_probs[:, -1])[None]).clamp(min=0).sqrt()
    same_class = class_probs[:, :-1].sqrt() @ other_class_probs[:, :-1].sqrt().T
    masks, other_masks = ((logits > 0).flatten(1).float() for logits in (mask_logits, other_mask_logits))
    intersection = masks @ other_masks.T
    union = masks.sum(1)[:, None] + other_masks.sum(1)[None] - intersection
    cost = both - 2 * same_class * intersection / union.clamp(min=1)
    _, other_queries = linear_sum_assignment(cost.double().cpu().numpy())  # rows come back in order
    return torch.as_tensor(other_queries, dtype=torch.int64, device=class_probs.device)


def resample_masks(
    mask_logits: Tensor, geometry: Geometry, target: Geometry, grid_size: Size, *, flipped: bool
) -> Tensor:
    """Read one view's masks, bilinearly, where the cells of another view's mask grid lie in the image.

    Args:
        mask_logits: (Q,h',w') logits.
        geometry: the sizes of their view.
        target: the sizes of the other view.
        grid_size: (h, w) of the other view's masks.
        flipped: whether the masks' view shows the mirror image; the other does not.

    Returns:
        (Q,h,w) logits. Cells in the other view's padding repeat the border of the image.
    """
    axes = []
    for axis in range(2):
        cells = torch.arange(grid_size[axis], device=mask_logits.device, dtype=mask_logits.dtype)
        pixels = (cells + 0.5) * target.padded_size[axis] / grid_size[axis]
        place = (pixels / target.image_size[axis]).clamp(max=1)  # 0..1 along the image
        if axis == 1 and flipped:
            place = 1 - place
        axes.append(2 * place * geometry.image_size[axis] / geometry.padded_size[axis] - 1)
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1)[None]
    return F.grid_sample(mask_logits[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
