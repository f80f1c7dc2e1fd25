"""The name under which ``maskformer.predictor`` was first published."""

from maskformer.predictor import Predictor

__all__ = ["Predictor"]
