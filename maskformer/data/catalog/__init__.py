"""The datasets of ours that a configuration can name; one file each."""

from __future__ import annotations

from pathlib import Path

from maskformer.data.catalog.ade20k import register_ade20k
from maskformer.data.catalog.shapes import register_shapes

__all__ = ["register_all"]


def register_all(root: str | Path) -> None:
    """Register every dataset of ours under a root, as often as wanted.

    Args:
        root: the folder of all datasets, ``$DETECTRON2_DATASETS``.
    """
    for register_dataset in (register_ade20k, register_shapes):
        register_dataset(root)
