"""From the mask grid back to pixels: up to the padded input, crop the padding, resize to the image's own size.

Everything can be had for a band of rows too, so that no more than a band of many maps need be held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.kernels import find_kernels, plan_interpolation

Size = tuple[int, int]

_BYTES_ELSEWHERE = 2**27  # of maps at a time on accelerators, where each operator costs a launch


@dataclass(frozen=True)
class Geometry:
    """The sizes that one image had on its way into the network, (height, width) each.

    Attributes:
        padded_size: the network input of the batch.
        image_size: the image within it, top left.
        output_size: the size that the result should have: the original image's.
        band_divisor: of the bytes of maps that are computed together, 1 or more; results stay the same.
    """

    padded_size: Size
    image_size: Size
    output_size: Size
    band_divisor: int = 1

    @property
    def keeps_size(self) -> bool:
        """Whether the result has the size of the image in the network input, so that nothing is left to resize."""
        return tuple(self.image_size) == tuple(self.output_size)

    def bytes_at_once(self, on_cpu: int, device: torch.device) -> int:
        """How many bytes of maps are computed together: on a CPU what is given, elsewhere many."""
        return (on_cpu if device.type == "cpu" else _BYTES_ELSEWHERE) // self.band_divisor

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """(N,h,w) logits -> (N,H,W) on the padded input, bilinear."""
        return resize_maps(mask_logits, self.padded_size)

    def restore(self, maps: Tensor) -> Tensor:
        """(N,H,W) values on the padded input -> (N,height,width) of the original image, bilinear."""
        height, width = self.image_size
        return resize_maps(maps[:, :height, :width], self.output_size)

    def upsample_rows(self, mask_logits: Tensor, rows: range) -> Tensor:
        """(N,h,w) logits -> some rows of ``upsample``, without the padding: (N, rows, image width)."""
        height, width = self.padded_size
        grid_height = mask_logits.shape[-2]
        factor = height // grid_height
        if factor * grid_height != height:
            return self.upsample(mask_logits)[:, rows.start : rows.stop, : self.image_size[1]]
        # One row more on both sides: then the kernel sees the neighbours that it sees in the whole map.
        source = range(max(rows.start // factor - 1, 0), min((rows.stop - 1) // factor + 2, grid_height))
        upsampled = resize_maps(mask_logits[:, source.start : source.stop], (factor * len(source), width))
        first = rows.start - factor * source.start
        return upsampled[:, first : first + len(rows), : self.image_size[1]]

    def upsampled_probs(self, mask_logits: Tensor, rows: range) -> Tensor:
        """(Q,h,w) logits -> probabilities at some rows of ``upsample``, without the padding: (Q, rows, image width)."""
        kernels = find_kernels(mask_logits)
        if kernels is None:
            return self.upsample_rows(mask_logits, rows).sigmoid()
        grid_rows, columns = (plan_interpolation(*sizes) for sizes in zip(mask_logits.shape[-2:], self.padded_size))
        top, bottom = int(grid_rows.low[rows.start]), int(grid_rows.low[rows.stop - 1]) + 1
        # The network may give masks side by side: to put all of them in order, for each band, would take longer.
        logits = mask_logits.detach()[:, top : bottom + 1].contiguous()
        probs = mask_logits.new_empty(len(logits), len(rows), self.image_size[1])
        kernels.write_mask_probs(logits.numpy(), top, grid_rows, columns, rows.start, probs.numpy())
        return probs

    def restored_from(self, rows: range) -> range:
        """The rows of the image that ``restore`` reads for some rows of the output."""
        length, scale = self.image_size[0], self.image_size[0] / self.output_size[0]
        first = math.floor((rows.start + 0.5) * scale - 0.5) - 1  # one more: the kernel counts in single precision
        last = math.floor((rows.stop - 0.5) * scale - 0.5) + 2
        return range(max(first, 0), min(last + 1, length))

    def restore_rows(self, maps: Tensor, rows: range, row_weights: Tensor) -> Tensor:
        """Some rows of ``restore``.

        Args:
            maps: (N,rows,image width): the rows ``restored_from(rows)``.
            rows: of the output.
            row_weights: what ``row_weights`` gives.

        Returns:
            (N,rows,width).
        """
        if self.keeps_size:
            return maps
        source = self.restored_from(rows)
        weights = row_weights[rows.start : rows.stop, source.start : source.stop]
        return weights @ resize_maps(maps, (len(source), self.output_size[1]))

    def row_weights(self, like: Tensor) -> Tensor:
        """(height, image height): how much of each row of the image is in each row of ``restore``; type of ``like``."""
        identity = torch.eye(self.image_size[0], dtype=like.dtype, device=like.device)
        return resize_maps(identity[:, :, None], (self.output_size[0], 1))[:, :, 0].T


def resize_maps(maps: Tensor, size: Size) -> Tensor:
    """Bilinear, align_corners False; nothing to do at the same size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def plan_bands(height: int, row_bytes: int, band_bytes: int) -> Iterator[range]:
    """Yields bands of rows that cover a map from the top.

    Args:
        height: rows of the map.
        row_bytes: what one row needs.
        band_bytes: what a band should not exceed, but for four rows, which are the least.
    """
    step = max(band_bytes // row_bytes // 4 * 4, 4)  # the mask grid's stride: few bands begin inside a cell
    for start in range(0, height, step):
        yield range(start, min(start + step, height))
