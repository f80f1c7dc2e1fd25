"""Query decoders: decoded features -> the class and the mask of each query."""

from .base import QUERY_DECODER_REGISTRY, QueryDecoder, build_query_decoder
from .masked import MultiScaleMaskedTransformerDecoder, may_attend
from .standard import MLP, MaskFormerPredictor, StandardTransformerDecoder

__all__ = [
    "MLP",
    "QUERY_DECODER_REGISTRY",
    "MaskFormerPredictor",
    "MultiScaleMaskedTransformerDecoder",
    "QueryDecoder",
    "StandardTransformerDecoder",
    "build_query_decoder",
    "may_attend",
]
