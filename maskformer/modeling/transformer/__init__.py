"""The transformer, in five files: attention (a layer's parts), dropout, position, encoder and decoder."""

from .attention import initialise_matrices
from .decoder import TransformerDecoder
from .encoder import TransformerEncoder
from .options import layer_options
from .position import sine_position_embedding

__all__ = [
    "TransformerDecoder",
    "TransformerEncoder",
    "initialise_matrices",
    "layer_options",
    "sine_position_embedding",
]
