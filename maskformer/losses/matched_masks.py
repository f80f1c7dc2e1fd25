"""Focal and dice of matched masks, values and gradients in one pass over a few rows of pixels at a time.

A low-resolution mask (h,w) is upsampled, compared with its target and its gradient taken back before the next
one: nothing of the size of the image is kept, and on a CPU nothing leaves the cache. With the sign z = 1 outside the
target and -1 inside, s = z x the logit of a pixel's error e = sigmoid(s), and alpha = (2 + z) / 4:

    focal = mean of alpha e^2 softplus(s)     d focal / dx = z alpha e^2 (2 (1 - e) softplus(s) + e) / pixels
    dice  = 1 - n / m                         d dice / dx = e (1 - e) (n / m - (1 - z)) / m
    n = 2 sum p t + 1,  m = sum p + sum t + 1

n and m are known only after the last pixel. As they are constants of a mask, e (1 - e) and z e (1 - e) are
taken to low resolution first and weighted there. Linear interpolation is a product with a matrix on each side, and the
gradient of the resize is a product with their transposes.

Source: the formulas of ``functional``; arXiv 1708.02002, equation 5; arXiv 1606.04797.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.kernels import find_kernels, for_each, interpolation_matrix, plan_interpolation
from maskformer.structures import MaskPredictions, Targets

from .functional import FOCAL_ALPHA, compare_in_threads, pairwise_mask_costs, pixels_at_once


class DenseMasks:
    """Masks are compared pixel by pixel: costs on the grid of the predictions, losses at the targets' size.

    Focal and dice, both. Source: MaskFormer (arXiv 2107.06278), section 3.2.
    """

    def prepare(self, predictions: MaskPredictions, targets: list[Targets]) -> DenseMasks:  # noqa: ARG002
        """What compares the masks of a step; see ``PointMasks``, where it holds the step's points."""
        return self

    def costs(self, image: int, mask_logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The mask and the dice cost of every query for every target.

        Args:
            image: 0..B-1.
            mask_logits: (L,Q,h,w) of the image.
            masks: (G,H,W) bool, its targets.

        Returns:
            Two (L,Q,G).
        """
        on_grid = resize_masks(masks, mask_logits.shape[-2:]).flatten(1).to(mask_logits.dtype)
        pixels = mask_logits.flatten(2)
        layers_at_once = max(pixels_at_once(pixels.device) // max(pixels[0].numel(), 1), 1)
        parts = [(part.flatten(0, 1), on_grid) for part in pixels.split(layers_at_once)]
        costs = compare_in_threads(pairwise_mask_costs, parts, pixels.device)
        focal, dice = (cost.unflatten(0, pixels.shape[:2]) for cost in costs)
        return focal, dice

    def losses(self, mask_logits: Tensor, masks: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """The mask and the dice loss of each layer, summed over its matched pairs.

        Args:
            mask_logits: (N,L,h,w), of the matched pairs of each layer.
            masks: (targets,H,W) bool, of the whole batch.
            pairs: (4,L,N) int64: layer, image, query and row in ``masks`` of each pair, in the order of rows.

        Returns:
            Two (L,).
        """
        if len(mask_logits) == len(masks):  # every layer matches every target: the rows of each are 0, 1, 2, ...
            focal, dice = MatchedMaskLosses.apply(mask_logits, masks)
        else:  # an image has more targets than queries
            rows = pairs[3].T.flatten()
            losses = MatchedMaskLosses.apply(mask_logits.flatten(0, 1)[:, None], masks[rows])
            focal, dice = (loss.view(mask_logits.shape[:2]) for loss in losses)
        return focal.sum(0), dice.sum(0)


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (G,H,W) bool masks to (G,*size) by nearest neighbour: what the released weights were trained with."""
    return F.interpolate(masks[:, None].byte(), tuple(size), mode="nearest")[:, 0].bool()


class MatchedMaskLosses(torch.autograd.Function):
    """``sigmoid_focal_loss`` and ``dice_loss`` of each matched mask, upsampled to the target's size.

    ``apply(mask_logits (T,N,h,w), masks (T,H,W) bool)`` compares each of the N masks ``mask_logits[t]`` with
    ``masks[t]`` and returns ``focal`` (T,N) means over pixels, and ``dice`` (T,N).
    """

    @staticmethod
    def forward(ctx: Any, mask_logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses, and what both gradients are made of, at low resolution."""
        num_pixels = masks.shape[-2] * masks.shape[-1]
        sums, maps = _sums_and_gradients(mask_logits, masks)
        error, signed_error, focal = sums
        area = masks.flatten(1).sum(1, keepdim=True, dtype=torch.int32).to(mask_logits.dtype)  # int64 is slow to sum
        overlap = area - (error - signed_error) / 2  # sum p t
        numerator, denominator = 2 * overlap + 1, signed_error + 2 * area + 1
        ratio = numerator / denominator
        focal_map, slope, signed_slope = maps
        dice_map = _weigh((ratio - 1) / denominator, slope).add_(_weigh(1 / denominator, signed_slope))
        ctx.save_for_backward(focal_map / num_pixels, dice_map)
        return focal / num_pixels, 1 - ratio

    @staticmethod
    def backward(ctx: Any, focal_gradient: Tensor, dice_gradient: Tensor) -> tuple[Tensor, None]:
        """Scale each mask's stored gradients by what came in for its losses."""
        focal_map, dice_map = ctx.saved_tensors
        return _weigh(focal_gradient, focal_map).add_(_weigh(dice_gradient, dice_map)), None


def _weigh(weights: Tensor, maps: Tensor) -> Tensor:
    """(T,N) times (T,N,h,w)."""
    return weights[..., None, None] * maps


def _sums_and_gradients(mask_logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """(3,T,N) sums of e, z e and the focal loss; (3,T,N,h,w) gradient of the focal sum, e (1 - e) and z e (1 - e)."""
    kernels = find_kernels(mask_logits)
    if kernels is not None:
        return _sums_and_gradients_compiled(kernels, mask_logits.detach(), masks)
    upsample_rows, upsample_columns = (
        interpolation_matrix(*lengths, mask_logits) for lengths in zip(mask_logits.shape[-2:], masks.shape[1:])
    )
    sums = mask_logits.new_empty(3, *mask_logits.shape[:2])
    maps = mask_logits.new_empty(3, *mask_logits.shape)
    targets_at_once, rows_at_once = _chunk(mask_logits.shape[:2], masks.shape[1:], mask_logits.device)
    bands = list(_bands(upsample_rows, rows_at_once))

    def add_up(start: int) -> None:
        chunk = slice(start, start + targets_at_once)
        # Rows come first, so that interpolating along them is one product.
        wide = (mask_logits[chunk] @ upsample_columns.mT).movedim(2, 0).contiguous()  # (h,t,N,W)
        wide_sums, wide_maps = wide.new_zeros(3, *wide.shape[1:]), wide.new_zeros(3, *wide.shape)
        for band in bands:
            logits = (band.weights @ wide[band.coarse].flatten(1)).unflatten(1, wide.shape[1:])
            band_sums, band_maps = _band_sums_and_maps(logits, masks[chunk, band.fine])
            wide_sums += band_sums
            wide_maps[:, band.coarse] += (band.weights.mT @ band_maps.flatten(2)).unflatten(2, wide.shape[1:])
        sums[:, chunk] = wide_sums.sum(-1)
        maps[:, chunk] = (wide_maps @ upsample_columns).movedim(1, 3)

    for_each(add_up, range(0, len(masks), targets_at_once), masks.device)
    return sums, maps


def _sums_and_gradients_compiled(kernels: Any, mask_logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the loops of ``kernels.loops``."""
    num_targets, num_masks = mask_logits.shape[:2]
    rows, columns = (plan_interpolation(*lengths) for lengths in zip(mask_logits.shape[-2:], masks.shape[1:]))
    alpha = np.float32(FOCAL_ALPHA)
    sums = mask_logits.new_empty(num_targets, num_masks, 3)
    maps = mask_logits.new_empty(num_targets, num_masks, 3, *mask_logits.shape[-2:])
    all_logits, all_masks, all_sums, all_maps = (
        tensor.contiguous().numpy() for tensor in (mask_logits, masks, sums, maps)
    )

    def compare(pair: tuple[int, int]) -> None:
        target = all_masks[pair[0]]
        kernels.compare_matched_mask(all_logits[pair], target, rows, columns, all_sums[pair], all_maps[pair], alpha)

    for_each(compare, list(itertools.product(range(num_targets), range(num_masks))), masks.device)
    return sums.movedim(2, 0), maps.movedim(2, 0)


def _band_sums_and_maps(logits: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Some rows (y,t,N,W) of logits and (t,y,W) of targets: the three terms summed over rows, and the three maps.

    Returns:
        (3,t,N,W) sums of e, z e and the focal loss over the rows; (3,y,t,N,W).
    """
    sign = inside.movedim(1, 0)[:, :, None].to(logits.dtype).mul_(-2).add_(1)
    signed_alpha = (sign * 0.5).add_(0.5 - FOCAL_ALPHA)  # z alpha
    error_logits = logits * sign
    terms, maps = logits.new_empty(2, 3, *logits.shape)
    error, softplus = torch.sigmoid(error_logits, out=terms[0]), F.softplus(error_logits)
    torch.mul(error, sign, out=terms[1])
    weight = (signed_alpha * error).mul_(error)
    torch.mul(weight, softplus, out=terms[2]).mul_(sign)
    right = 1 - error
    torch.addcmul(error, right, softplus, value=2, out=maps[0]).mul_(weight)
    slope = torch.mul(error, right, out=maps[1])
    torch.mul(slope, sign, out=maps[2])
    return terms.sum(1), maps


@dataclass(frozen=True)
class _Band:
    """Some rows of the image, and the rows of the mask grid that they come from.

    Attributes:
        fine: rows of the image.
        coarse: rows of the grid.
        weights: (fine, coarse) of the interpolation.
    """

    fine: slice
    coarse: slice
    weights: Tensor


def _bands(weights: Tensor, rows_at_once: int) -> Iterator[_Band]:
    """Cut the rows of an (H,h) interpolation, each band with the columns that it uses."""
    num_fine, num_coarse = weights.shape
    scale = num_coarse / num_fine
    for start in range(0, num_fine, rows_at_once):
        stop = min(start + rows_at_once, num_fine)
        # Pixel y lies at (y + 1/2) scale - 1/2 on the grid: between the row below that number and the next.
        first = max(int((start + 0.5) * scale - 0.5), 0)
        last = min(int((stop - 0.5) * scale - 0.5) + 2, num_coarse)
        coarse = slice(first, last)
        yield _Band(slice(start, stop), coarse, weights[start:stop, coarse].contiguous())


def _chunk(grouped: torch.Size, size: torch.Size, device: torch.device) -> tuple[int, int]:
    """How many of T targets of (H,W), N masks each, and how many rows of them, to look at together."""
    num_targets, masks_of_target = grouped
    elements = pixels_at_once(device, pieces=num_targets)
    row = max(masks_of_target * size[1], 1)
    rows_at_once = min(max(elements // row, 1), size[0])
    return max(elements // (rows_at_once * row), 1), rows_at_once
