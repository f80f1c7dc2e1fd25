"""Semantic inference: one score a class and pixel, or one label a pixel.

Both are computed in bands of rows, so that memory does not grow with queries times pixels, and for labels not with
classes times pixels either.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .resize import Geometry, device_bytes, plan_bands, shrunk

_BAND_BYTES = 2**23  # of a band's masks or scores; the C library gives blocks above 32 MB back after each use
_BLOCK_BYTES = 2**21  # of the scores that an arg-max reads: they stay in a core's cache


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Marginalise over queries: sum over q of p_q(class) * sigmoid(mask_q).

    Args:
        class_logits: (Q,K+1) logits.
        mask_logits: (Q,H,W) logits at the resolution of the answer.

    Returns:
        (K,H,W) scores, at least 0; the class of a pixel is the arg-max.

    Source: MaskFormer, section 3.4, "Semantic inference".
    """
    class_probs = class_logits.softmax(-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", class_probs, mask_logits.sigmoid())


@torch.no_grad()
def semantic_inference(
    class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, *, restore_masks_first: bool
) -> Tensor:
    """Semantic scores at the original size of the image, without gradients.

    Args:
        class_logits: (Q,K+1) logits.
        mask_logits: (Q,h,w) logits.
        geometry: the image's sizes.
        restore_masks_first: resize masks to the original size before classes are summed, else the scores after it.

    Returns:
        (K,height,width) scores.
    """
    scores = mask_logits.new_empty(class_logits.shape[1] - 1, *geometry.output_size)
    if geometry.keeps_size or restore_masks_first:
        class_probs, width = class_logits.softmax(-1)[:, :-1].T, geometry.output_size[1]
        for rows, masks in _mask_bands(mask_logits, geometry):
            band = scores.flatten(1)[:, rows.start * width : rows.stop * width]
            torch.mm(class_probs, masks.sigmoid().flatten(1), out=band)  # to its place, without a copy
    else:
        for rows, band in _restored_score_bands(class_logits, mask_logits, geometry):
            scores[:, rows.start : rows.stop] = band
    return scores


@torch.no_grad()
def semantic_labels(
    class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, *, restore_masks_first: bool
) -> Tensor:
    """The class of each pixel: the arg-max of ``semantic_inference``, whose scores are never held at once.

    Args:
        class_logits: (Q,K+1) logits.
        mask_logits: (Q,h,w) logits.
        geometry: the image's sizes.
        restore_masks_first: see ``semantic_inference``.

    Returns:
        (height,width) int32, 0..K-1.
    """
    labels = torch.empty(geometry.output_size, dtype=torch.int32, device=mask_logits.device)
    if geometry.keeps_size or restore_masks_first:
        class_probs = class_logits.softmax(-1)[:, :-1]
        for rows, masks in _mask_bands(mask_logits, geometry):
            labels[rows.start : rows.stop] = _best_classes(class_probs, masks.sigmoid())
    else:
        for rows, scores in _restored_score_bands(class_logits, mask_logits, geometry):
            labels[rows.start : rows.stop] = scores.max(0).indices
    return labels


def _mask_bands(mask_logits: Tensor, geometry: Geometry) -> Iterator[tuple[range, Tensor]]:
    """Yields rows of the output, and the (Q,rows,width) mask logits there."""
    row_weights = mask_logits if geometry.keeps_size else geometry.row_weights(mask_logits)
    for rows in _plan(geometry, mask_logits, len(mask_logits)):
        source = rows if geometry.keeps_size else geometry.restored_from(rows)
        yield rows, geometry.restore_rows(geometry.upsample_rows(mask_logits, source), rows, row_weights)


def _restored_score_bands(
    class_logits: Tensor, mask_logits: Tensor, geometry: Geometry
) -> Iterator[tuple[range, Tensor]]:
    """Yields rows of the output, and the (K,rows,width) scores there, resized as scores."""
    row_weights = geometry.row_weights(mask_logits)
    for rows in _plan(geometry, mask_logits, max(len(mask_logits), class_logits.shape[1])):
        masks = geometry.upsample_rows(mask_logits, geometry.restored_from(rows))
        yield rows, geometry.restore_rows(semantic_scores(class_logits, masks), rows, row_weights)


def _plan(geometry: Geometry, mask_logits: Tensor, num_maps: int) -> Iterator[range]:
    width = max(geometry.image_size[1], geometry.output_size[1])
    row_bytes = num_maps * width * mask_logits.element_size()
    return plan_bands(geometry.output_size[0], row_bytes, device_bytes(_BAND_BYTES, mask_logits.device))


def _best_classes(class_probs: Tensor, mask_probs: Tensor) -> Tensor:
    """(rows,width) int64: the class with the largest score, for (Q,K) and (Q,rows,width) probabilities."""
    block_bytes = shrunk(device_bytes(_BLOCK_BYTES, mask_probs.device))
    pixels = max(block_bytes // (class_probs.shape[1] * mask_probs.element_size()), 1)
    # max along neighbours in memory, not argmax: several times faster on a CPU, and it gives the first of equals too.
    blocks = [(block.T @ class_probs).max(1).indices for block in mask_probs.flatten(1).split(pixels, dim=1)]
    return torch.cat(blocks).view(mask_probs.shape[1:])
