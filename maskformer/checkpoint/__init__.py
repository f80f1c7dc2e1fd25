"""Weights in and out: safe loading, and the one place that knows other people's parameter names.

``reading`` opens files without running anything in them: ``unpickling`` reads pickles as data, and ``stored`` makes
arrays and tensors of it; ``detection`` knows a layout by its names; ``hugging_face``, ``openmmlab``, ``resnet``
(torchvision and timm), ``swin`` and ``original`` hold one source's names each; ``checkpointer`` puts them into a model.
"""

from maskformer.files import CheckpointWriteError, remove_partial_files

from .checkpointer import Checkpointer, refuse_unknown_weights
from .layouts.detection import LAYOUTS, Conversion, convert_weights
from .layouts.original import rename_old_layout
from .reading import find_weights_file, read_weights

__all__ = [
    "LAYOUTS",
    "CheckpointWriteError",
    "Checkpointer",
    "Conversion",
    "convert_weights",
    "find_weights_file",
    "read_weights",
    "refuse_unknown_weights",
    "remove_partial_files",
    "rename_old_layout",
]
