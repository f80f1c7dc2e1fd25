"""From the mask grid back to pixels: up to the padded input, crop the padding, resize to the image's own size."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The sizes that one image had on its way into the network, (height, width) each.

    Attributes:
        padded_size: the network input of the batch.
        image_size: the image within it, top left.
        output_size: the size that the result should have: the original image's.
    """

    padded_size: Size
    image_size: Size
    output_size: Size

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """(N,h,w) logits -> (N,H,W) on the padded input, bilinear."""
        return resize_maps(mask_logits, self.padded_size)

    def restore(self, maps: Tensor) -> Tensor:
        """(N,H,W) values on the padded input -> (N,height,width) of the original image, bilinear."""
        height, width = self.image_size
        return resize_maps(maps[:, :height, :width], self.output_size)


def resize_maps(maps: Tensor, size: Size) -> Tensor:
    """Bilinear, align_corners False; nothing to do at the same size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
