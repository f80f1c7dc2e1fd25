"""The transformer: layers (encoder and decoder), deformable attention, and where a feature is (position)."""

from .deformable import MultiScaleDeformableAttention, Sizes, reference_points
from .layers import (
    Residual,
    ResidualLayer,
    TransformerDecoder,
    TransformerEncoder,
    attend,
    initialise_matrices,
    layer_options,
    multi_head_attention,
)
from .position import sine_position_embedding

__all__ = [
    "MultiScaleDeformableAttention",
    "Residual",
    "ResidualLayer",
    "Sizes",
    "TransformerDecoder",
    "TransformerEncoder",
    "attend",
    "initialise_matrices",
    "layer_options",
    "multi_head_attention",
    "reference_points",
    "sine_position_embedding",
]
