"""StandardTransformerDecoder: queries ask one feature of the image for masks and say which class each one is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.structures import multiply

from ..pixel_decoders import DecodedFeatures
from ..transformer import (
    TransformerDecoder,
    TransformerEncoder,
    initialise_matrices,
    sine_position_embedding,
)
from .base import QUERY_DECODER_REGISTRY, QueryDecoder, decoder_options


@QUERY_DECODER_REGISTRY.register()
class StandardTransformerDecoder(QueryDecoder):
    """The transformer module and the segmentation module: MaskFormer's.

    Args:
        in_channels: of the feature that queries attend to.
        num_classes: K; None where each query is a class itself: then there is no class branch, only ``predict_masks``.
        num_queries: Q.
        dim: D.
        mask_dim: C.
        num_encoder_layers: encoder layers between the feature and the decoder.
        num_decoder_layers: decoder layers.
        num_heads: attention heads; divides D.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability.
        pre_norm: normalise before each block.
        enforce_input_proj: a 1x1 convolution on the feature even if it has D channels already.
        deep_supervision: predict from every decoder layer during training.

    Source: MaskFormer, section 3.3, "Transformer module" and "Segmentation module".
    """

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int | None,
        num_queries: int,
        dim: int,
        mask_dim: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        enforce_input_proj: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        layer: dict[str, Any] = {
            "dim": dim,
            "num_heads": num_heads,
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        # Sub-modules are named as in the released weights: predictor.transformer.decoder.layers.0...
        self.transformer = nn.ModuleDict(
            {
                "encoder": TransformerEncoder(num_layers=num_encoder_layers, **layer),
                "decoder": TransformerDecoder(num_layers=num_decoder_layers, **layer),
            }
        )
        initialise_matrices(self.transformer)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.input_proj = input_projection(in_channels, dim, enforce_input_proj)
        self.class_embed = None if num_classes is None else nn.Linear(dim, num_classes + 1)  # index K is "no object"
        self.mask_embed = MLP(dim, dim, mask_dim, num_layers=3)
        self.deep_supervision = deep_supervision

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, Any]:
        """Read ``MODEL.MASK_FORMER`` and the widths of ``MODEL.SEM_SEG_HEAD``."""
        return {
            **decoder_options(cfg),
            "in_channels": in_channels,
            "num_encoder_layers": cfg.MODEL.MASK_FORMER.ENC_LAYERS,
        }

    def forward(self, feature: Tensor, decoded: DecodedFeatures) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See ``QueryDecoder.forward``."""
        assert self.class_embed is not None
        queries = self._decode(feature)
        return self.class_embed(queries), self.mask_embed(queries)

    def predict_masks(self, feature: Tensor, decoded: DecodedFeatures) -> Tensor:
        """Predict masks alone: (L,B,Q,h,w) logits; arguments and L as in ``forward``."""
        return multiply(self.mask_embed(self._decode(feature)), decoded.mask_features)

    def _decode(self, feature: Tensor) -> Tensor:
        """(L,B,Q,D): the queries after each supervised layer."""
        projected = self.input_proj(feature)
        rows, columns = projected.shape[-2:]
        position = sine_position_embedding(rows, columns, projected.shape[1], projected.device)
        position = position.to(projected.dtype).flatten(1).mT[None]
        memory = self.transformer["encoder"](projected.flatten(2).mT, position)
        every_layer = self.training and self.deep_supervision
        return self.transformer["decoder"](self.query_embed.weight[None], memory, position, every_layer=every_layer)


MaskFormerPredictor = StandardTransformerDecoder  # the name of earlier versions


def input_projection(in_channels: int, dim: int, enforce: bool) -> nn.Module:
    """What brings (B, in_channels, rows, columns) to D channels: nothing, where it has them and nobody insists."""
    if in_channels == dim and not enforce:
        return nn.Identity()
    projection = Conv2d(in_channels, dim, kernel_size=1)
    weight_init.c2_xavier_fill(projection)
    return projection


class MLP(nn.Module):
    """Linear layers with a ReLU between each two.

    Args:
        in_dim: width of the input.
        hidden_dim: width between layers.
        out_dim: width of the output.
        num_layers: linear layers, at least 1.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, num_layers: int):
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
