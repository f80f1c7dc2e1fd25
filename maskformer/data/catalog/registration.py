"""What registering a dataset needs, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog


def register(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a dataset, in place of an earlier registration of the same name.

    Args:
        name: as in ``DATASETS.TRAIN``.
        load: gives Detectron2's dataset dicts.
        metadata: what evaluators and the visualizer ask for.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def read_categories(file_name: str) -> list[dict[str, Any]]:
    """Read a table of ``maskformer/data/categories``: the categories in the order of their contiguous ids."""
    return json.loads((resources.files("maskformer.data") / "categories" / file_name).read_text(encoding="utf-8"))
