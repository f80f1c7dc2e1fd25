"""What all evaluators share: images are measured one by one, and what is measured of an image can be kept on disk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from maskformer.structures import InputError

from .journal import Journal

Records = Sequence[Mapping[str, Any]]


class ImageEvaluator(DatasetEvaluator):
    """One kind of result of a dataset, measured image by image; subclasses give ``measure`` and ``score``.

    Args:
        dataset_name: registered.
        output_folder: where predictions are written; None: nowhere.

    Attributes:
        switch: the key under ``MODEL.MASK_FORMER.TEST`` that has the model give this result.
        entry_key: in the dataset's entries, says that they have labels for it.
        json_key: in the dataset's metadata, names a file that has them instead; "": none may.
        num_classes: K of the dataset, where a model must have as many.
    """

    switch: ClassVar[str]
    entry_key: ClassVar[str]
    json_key: ClassVar[str] = ""
    num_classes: int | None = None

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        self.name = dataset_name
        self.metadata = MetadataCatalog.get(dataset_name)
        self.output_folder = output_folder
        self.reset()

    @classmethod
    def has_truth(cls, metadata: Metadata, records: Records) -> bool:
        """Whether a dataset, by its metadata and entries, holds what the result is compared with."""
        json_file = metadata.get(cls.json_key)
        return (
            any(cls.entry_key in record for record in records) if json_file is None else PathManager.isfile(json_file)
        )

    def check(self, records: Records) -> None:
        """Raise an ``InputError`` where the truth lacks something that measuring the entries of the dataset needs."""

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> Any:
        """Compare one image with its label.

        Args:
            example: entry of the dataset.
            output: the model's.

        Returns:
            All that is to be known of the image: plain numbers, text, lists and dicts with text as keys.

        Raises:
            InputError: there is no label, or classes, ids or sizes do not fit.
        """
        raise NotImplementedError

    def score(self, measured: list[Any]) -> dict[str, dict[str, Any]]:
        """The scores in percent by kind of result and metric, once on the main process.

        Args:
            measured: what ``measure`` gave of all images; tuples may have become lists.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all images."""
        self._measured: list[Any] = []

    def add(self, measured: Any) -> None:
        """Take what ``measure`` gave of an image."""
        self._measured.append(measured)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Measure some images: entries of the dataset, and the model's output for each."""
        for example, output in zip(inputs, outputs, strict=True):
            self.add(self.measure(example, output))

    def evaluate(self) -> dict[str, dict[str, Any]] | None:
        """What ``score`` gives of the images of all processes; on the main process only."""
        parts = comm.gather(self._measured)
        return self.score(list(itertools.chain(*parts))) if comm.is_main_process() else None

    def _refuse_unknown_images(self, records: Records, known: Collection[Any], json_file: str) -> None:
        """Raise an ``InputError`` where an image has no ``image_id``, or none that a JSON knows."""
        for record in records:
            if record.get("image_id") not in known:
                seen = f"image_id {record['image_id']!r}" if "image_id" in record else "no image_id"
                raise InputError(
                    f"{json_file} has no annotation of image {record.get('image_id')!r} ({record['file_name']}), which "
                    f"has {seen}; expected one of its ids, such as {next(iter(known), None)!r}, for each image of "
                    "DATASETS.TEST."
                )

    def _image_id(self, example: Mapping[str, Any], content: Mapping[str, Any]) -> Any:
        """The id of an image in the truth; by the name of its file, where an entry of a Python function has none."""
        if "image_id" in example:
            return example["image_id"]
        return next((image["id"] for image in content["images"] if image["file_name"] == example["file_name"]), None)

    def _ids_by_name(self, names: Sequence[str] | None, categories: Records, json_file: str) -> dict[int, int]:
        """The category id that a JSON has for each class of a dataset without a table of ids, found by its name."""
        id_of_name = {category.get("name"): category["id"] for category in categories}
        missing = [name for name in names or () if name not in id_of_name]
        if not names or missing or len(id_of_name) < len(categories):
            raise InputError(
                f"{json_file} has the categories {', '.join(map(str, id_of_name))} but the dataset has the classes "
                f"{', '.join(names or ['(not named)'])} and no table of ids; expected the same names, or "
                "thing_dataset_id_to_contiguous_id (stuff_dataset_id_to_contiguous_id) in its metadata."
            )
        return {index: id_of_name[name] for index, name in enumerate(names)}

    def _ids_of_things(self, instances: Instances, dataset_ids: Mapping[int, int]) -> list[int]:
        """The category id of each predicted instance; raises where its class is no thing of the dataset."""
        classes = instances.pred_classes.tolist()
        foreign = sorted(set(classes) - dataset_ids.keys())
        if foreign:
            raise InputError(
                f"The model predicts an instance of class {foreign[0]}, which is none of the {len(dataset_ids)} things "
                f"of {self.name}: check MODEL.SEM_SEG_HEAD.NUM_CLASSES and DATASETS.TEST."
            )
        return [dataset_ids[index] for index in classes]

    def _write(self, file_name: str, content: Any) -> None:
        """Write a JSON file to the output folder, where there is one."""
        if self.output_folder is not None:
            Path(self.output_folder).mkdir(parents=True, exist_ok=True)
            Path(self.output_folder, file_name).write_text(json.dumps(content), encoding="utf-8")


class ImageByImageEvaluators(DatasetEvaluators):
    """Detectron2's combination of evaluators, which may keep what it measures in a journal.

    Args:
        evaluators: of one dataset.
        output_folder: where they write their results; None: nowhere.
    """

    def __init__(self, evaluators: Sequence[ImageEvaluator], output_folder: str | None = None):
        super().__init__(list(evaluators))
        self.evaluators = evaluators
        self.output_folder = output_folder
        self._journal: Journal | None = None

    def keep_in(self, journal: Journal) -> None:
        """From now on, images go to a journal, and are counted in ``evaluate``, with those that it held before."""
        self._journal = journal

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Measure some images.

        Args:
            inputs: entries of the dataset, with ``dataset_index`` where there is a journal.
            outputs: the model's, one for each.
        """
        if self._journal is None:
            super().process(inputs, outputs)
            return
        for example, output in zip(inputs, outputs, strict=True):
            measured = [evaluator.measure(example, output) for evaluator in self.evaluators]
            self._journal.append(example["dataset_index"], json.dumps(measured, separators=(",", ":")).encode())

    def evaluate(self) -> dict[str, Any]:
        """The scores of all, on the main process; the same as without a journal, in the order of the dataset."""
        if self._journal is None:
            return super().evaluate()
        images = dict(itertools.chain(*comm.gather(list(self._journal.lines()))))  # none but on the main process
        for index in sorted(images):
            for evaluator, measured in zip(self.evaluators, json.loads(images.pop(index)), strict=True):
                evaluator.add(measured)
        scores: dict[str, Any] = super().evaluate()
        self._journal.finish()
        return scores
