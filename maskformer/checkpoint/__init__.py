"""Weights in and out: safe loading, and the one place that knows other people's parameter names.

``reading`` opens files without running anything in them: ``unpickling`` reads pickles as data, and ``stored`` makes
arrays and tensors of it; ``layouts`` know a source by its names; ``fitting`` completes and resamples weights, and
``checkpointer`` puts them into a model.
"""

from maskformer.files import CheckpointWriteError, remove_partial_files

from .checkpointer import Checkpointer, refuse_checkpoints, refuse_unknown_weights
from .fitting import fit_to_model
from .layouts.detection import LAYOUTS, Conversion, convert_weights, rename_old_layout
from .reading import find_weights_file, read_weights

__all__ = [
    "LAYOUTS",
    "CheckpointWriteError",
    "Checkpointer",
    "Conversion",
    "convert_weights",
    "find_weights_file",
    "fit_to_model",
    "read_weights",
    "refuse_checkpoints",
    "refuse_unknown_weights",
    "remove_partial_files",
    "rename_old_layout",
]
