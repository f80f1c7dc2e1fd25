"""The transformer: layers (encoder and decoder), and where a feature is (position)."""

from .layers import TransformerDecoder, TransformerEncoder, initialise_matrices, layer_options
from .position import sine_position_embedding

__all__ = [
    "TransformerDecoder",
    "TransformerEncoder",
    "initialise_matrices",
    "layer_options",
    "sine_position_embedding",
]
