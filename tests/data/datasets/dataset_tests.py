"""What holds for every dataset: a new one inherits ``DatasetTests`` and sets two attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from maskformer.data import verify_dataset
from maskformer.data.checks.verification import class_names
from maskformer.data.datasets import register_all
from maskformer.data.files.json_files import check_annotation
from maskformer.data.files.reading import check_declared_size, read_label_map, read_segment_ids
from maskformer.evaluation import MEASURES

Record = dict[str, Any]


class DatasetTests:
    """Tests of registered datasets.

    Attributes:
        names: of the datasets, as in ``DATASETS.TRAIN``.
        write: makes a few images of them, below a root; registers them too where ``register_all`` does not.
    """

    names: tuple[str, ...]
    write: Callable[[Path], Any]

    @pytest.fixture
    def root(self, tmp_path: Path) -> Iterator[Path]:
        before = set(DatasetCatalog.list())
        register_all(tmp_path)
        type(self).write(tmp_path)
        yield tmp_path
        register_all("datasets")
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    def load(self, name: str) -> list[tuple[Record, list[str]]]:
        """Its entries, and the names of the classes that their labels index."""
        record, metadata = DatasetCatalog.get(name)[0], MetadataCatalog.get(name)
        classes = class_names(metadata, record)
        return [(record, classes) for record in verify_dataset(name, len(classes), is_train=True)]

    def test_metadata_names_and_colours_each_class_and_how_it_is_measured(self, root: Path) -> None:
        for name in self.names:
            (record, classes), metadata = self.load(name)[0], MetadataCatalog.get(name)
            kind = "thing" if "annotations" in record else "stuff"
            assert len(set(classes)) == len(classes) == len(metadata.get(f"{kind}_colors"))
            assert set(metadata.get(f"{kind}_dataset_id_to_contiguous_id").values()) <= set(range(len(classes)))
            assert metadata.evaluator_type in MEASURES

    def test_images_have_the_size_that_entries_and_labels_have(self, root: Path) -> None:
        for name in self.names:
            for record, _ in self.load(name):
                image = Image.open(record["file_name"])
                check_declared_size(record, np.asarray(image))
                for file in (record.get("sem_seg_file_name"), record.get("pan_seg_file_name")):
                    assert file is None or Image.open(file).size == image.size

    def test_labels_are_classes_or_ignored(self, root: Path) -> None:
        for name in self.names:
            ignored = MetadataCatalog.get(name).get("ignore_label")
            for record, classes in self.load(name):
                labels = [
                    entry["category_id"] for key in ("segments_info", "annotations") for entry in record.get(key, [])
                ]
                assert set(labels) <= set(range(len(classes)))
                if "sem_seg_file_name" in record:
                    read_label_map(record["sem_seg_file_name"], len(classes), ignored, record.get("label_values"))
                if "pan_seg_file_name" in record:
                    ids = {segment["id"] for segment in record["segments_info"]}
                    assert set(read_segment_ids(record["pan_seg_file_name"]).flat) <= {0, *ids}
                for annotation in record.get("annotations", []):
                    check_annotation(annotation, name, Image.open(record["file_name"]).size[::-1])
