"""Semantic inference: one score a class and pixel, or one label a pixel.

Both are computed in bands of rows, so that memory does not grow with queries times pixels, and for labels not with
classes times pixels either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskformer.kernels import best_classes, find_kernels, for_each

from .resize import Geometry, plan_bands

_BAND_BYTES = 2**23  # of a band's masks or scores; the C library gives blocks above 32 MB back after each use
_BLOCK_BYTES = 2**21  # of the scores that an arg-max reads: they stay in a core's cache


@torch.no_grad()
def semantic_inference(
    class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, *, restore_masks_first: bool
) -> Tensor:
    """Semantic scores at the original size of the image, without gradients: sum over q of p_q(class) * sigmoid(mask_q).

    Args:
        class_logits: (Q,K+1) logits.
        mask_logits: (Q,h,w) logits.
        geometry: the image's sizes.
        restore_masks_first: resize masks to the original size before classes are summed, else the scores after it.

    Returns:
        (K,height,width) scores, at least 0; the class of a pixel is the arg-max.

    Source: MaskFormer, section 3.4, "Semantic inference".
    """
    bands = _Bands(class_logits, mask_logits, geometry, restore_masks_first=restore_masks_first)
    scores = mask_logits.new_empty(len(bands.class_probs), *geometry.output_size)
    width = geometry.output_size[1]

    def write(rows: range) -> None:
        if bands.restores_scores:
            scores[:, rows.start : rows.stop] = bands.restored_scores(rows)
        else:  # to its place, without a copy
            place = scores.flatten(1)[:, rows.start * width : rows.stop * width]
            torch.mm(bands.class_probs, bands.mask_probs(rows).flatten(1), out=place)

    for_each(write, bands.plan(), mask_logits.device)
    return scores


@torch.no_grad()
def semantic_labels(
    class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, *, restore_masks_first: bool
) -> Tensor:
    """The class of each pixel: the arg-max of ``semantic_inference``, whose scores are never held at once.

    Args: those of ``semantic_inference``.

    Returns:
        (height,width) int32, 0..K-1.
    """
    bands = _Bands(class_logits, mask_logits, geometry, restore_masks_first=restore_masks_first)
    labels = torch.empty(geometry.output_size, dtype=torch.int32, device=mask_logits.device)
    block_bytes = geometry.bytes_at_once(_BLOCK_BYTES, mask_logits.device)

    def write(rows: range) -> None:
        if bands.restores_scores:
            best = best_classes(bands.restored_scores(rows))
        else:
            mask_probs = bands.mask_probs(rows).flatten(1)
            pixels = max(block_bytes // (len(bands.class_probs) * mask_probs.element_size()), 1)
            blocks = mask_probs.split(pixels, dim=1)
            best = torch.cat([_best_classes(bands.class_probs, block) for block in blocks])
        labels[rows.start : rows.stop] = best.view(len(rows), -1)

    for_each(write, bands.plan(), mask_logits.device)
    return labels


class _Bands:
    """What is needed of some rows of the output, independent of the others; ``class_probs`` are (K,Q)."""

    def __init__(self, class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, *, restore_masks_first: bool):
        self.class_probs = class_logits.softmax(-1)[:, :-1].T.contiguous()
        self.restores_scores = not (geometry.keeps_size or restore_masks_first)
        self._mask_logits, self._geometry = mask_logits, geometry
        self._row_weights = mask_logits if geometry.keeps_size else geometry.row_weights(mask_logits)

    def plan(self) -> list[range]:
        """Bands of rows."""
        num_maps = max(self.class_probs.shape) if self.restores_scores else len(self._mask_logits)
        width = max(self._geometry.image_size[1], self._geometry.output_size[1])
        row_bytes = num_maps * width * self._mask_logits.element_size()
        band_bytes = self._geometry.bytes_at_once(_BAND_BYTES, self._mask_logits.device)
        return list(plan_bands(self._geometry.output_size[0], row_bytes, band_bytes))

    def mask_probs(self, rows: range) -> Tensor:
        """(Q,rows,width) of the output."""
        if self._geometry.keeps_size:
            return self._geometry.upsampled_probs(self._mask_logits, rows)
        upsampled = self._geometry.upsample_rows(self._mask_logits, self._geometry.restored_from(rows))
        return self._geometry.restore_rows(upsampled, rows, self._row_weights).sigmoid()

    def restored_scores(self, rows: range) -> Tensor:
        """(K,rows,width) of the output, resized as scores."""
        mask_probs = self._geometry.upsampled_probs(self._mask_logits, self._geometry.restored_from(rows))
        scores = (self.class_probs @ mask_probs.flatten(1)).unflatten(1, mask_probs.shape[1:])
        return self._geometry.restore_rows(scores, rows, self._row_weights)


def _best_classes(class_probs: Tensor, mask_probs: Tensor) -> Tensor:
    """(pixels,): the first class with the largest score, for (K,Q) and (Q,pixels) probabilities."""
    if find_kernels(class_probs, mask_probs) is None:
        # max along neighbours in memory, not argmax: several times faster on a CPU, and it gives the first of equals.
        return (mask_probs.T @ class_probs.T).max(1).indices
    return best_classes(class_probs @ mask_probs)
