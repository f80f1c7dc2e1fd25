"""MaskFormer for semantic, instance and panoptic segmentation, as a Detectron2 plugin.

Importing this package registers its components with Detectron2 and does nothing else.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskformer.engine.commands import evaluate, train
    from maskformer.exporting.commands import export
    from maskformer.predictor import Predictor, load

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "maskformer needs Detectron2, which is not on PyPI under that name: run `make install_dev` in maskformer's "
        "repository, or build and install a wheel with its install/build_wheels.py, or install the official source "
        "from https://github.com/facebookresearch/detectron2"
    ) from None

with warnings.catch_warnings():  # of libraries, as they are imported: nobody who reads them here can change it
    warnings.simplefilter("ignore")
    from maskformer.config import add_maskformer_config
    from maskformer.data import MaskFormerPanopticDatasetMapper, MaskFormerSemanticDatasetMapper
    from maskformer.engine import Trainer
    from maskformer.losses import HungarianMatcher, SetCriterion
    from maskformer.meta_arch import EoMT, MaskFormer
    from maskformer.structures import ESCAPING

logging.getLogger(__name__).addHandler(ESCAPING)  # names out of files reach no log as they are

__all__ = [
    "EoMT",
    "HungarianMatcher",
    "MaskFormer",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "Predictor",
    "SetCriterion",
    "Trainer",
    "add_maskformer_config",
    "evaluate",
    "export",
    "load",
    "train",
]

__version__ = "0.2.0"


_DOOR = {
    "Predictor": "maskformer.predictor",
    "evaluate": "maskformer.engine.commands",
    "export": "maskformer.exporting.commands",
    "load": "maskformer.predictor",
    "train": "maskformer.engine.commands",
}


def __getattr__(name: str) -> Any:
    """The Python door when it is asked for: what draws takes a while to import."""
    if name in _DOOR:
        return getattr(importlib.import_module(_DOOR[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
