"""TransformerEncoderPixelDecoder: the pyramid of ``BasePixelDecoder`` over a transformer-encoded coarsest feature."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn

from ..transformer import TransformerEncoder, initialise_matrices, layer_options, sine_position_embedding
from .base import BasePixelDecoder, DecodedFeatures


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """Refine the coarsest feature by a transformer encoder, then go top-down.

    Args:
        input_shape: backbone feature name -> channels and stride.
        convs_dim: D, channels of the pyramid and width of the encoder.
        mask_dim: C.
        norm: see ``BasePixelDecoder``.
        num_encoder_layers: layers of the encoder.
        num_heads: attention heads; divides D.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability.
        pre_norm: normalise before each block.

    Source: MaskFormer, section 4.1 "Panoptic segmentation models": six encoder layers after the backbone.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        convs_dim: int,
        mask_dim: int,
        norm: str = "",
        num_encoder_layers: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
    ):
        super().__init__(input_shape, convs_dim=convs_dim, mask_dim=mask_dim, norm=norm)
        coarsest = input_shape[self.feature_names[-1]].channels
        self.encoded_channels = convs_dim
        self.input_proj = Conv2d(coarsest, convs_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        encoder = TransformerEncoder(
            num_layers=num_encoder_layers,
            dim=convs_dim,
            num_heads=num_heads,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            pre_norm=pre_norm,
        )
        initialise_matrices(encoder)
        self.transformer = nn.ModuleDict({"encoder": encoder})  # the released weights: transformer.encoder.layers.*

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.SEM_SEG_HEAD`` and, for the encoder, ``MODEL.MASK_FORMER``."""
        return {
            **super().from_config(cfg, input_shape),
            **layer_options(cfg),
            "num_encoder_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
        }

    def _add_coarsest_layer(self, in_channels: int, convs_dim: int) -> None:
        del in_channels  # the encoder's output, not the backbone's, comes in
        super()._add_coarsest_layer(convs_dim, convs_dim)

    def decode(self, features: dict[str, Tensor]) -> DecodedFeatures:
        """As ``BasePixelDecoder.decode``, with the encoded feature."""
        encoded = self._encode(features.pop(self.feature_names[-1]))
        return DecodedFeatures(self._finest(encoded, features), self.mask_features, encoded=encoded)

    def _encode(self, coarsest: Tensor) -> Tensor:
        projected = self.input_proj(coarsest)
        batch, dim, rows, columns = projected.shape
        position = sine_position_embedding(rows, columns, dim, projected.device).to(projected.dtype)
        cells = self.transformer["encoder"](projected.flatten(2).mT, position.flatten(1).mT[None])
        encoded = cells.mT.reshape(batch, dim, rows, columns)
        # PyTorch's group norm for devices that have none of their own views its input, which must then be contiguous.
        return encoded if encoded.device.type == "cpu" else encoded.contiguous()
