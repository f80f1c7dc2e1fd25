"""What all evaluators share: images are measured one by one, and what is measured of an image can be kept on disk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from maskformer.files import json_text
from maskformer.structures import InputError

from .journal import Journal
from .kept import Draw, KeptPictures
from .results import describe_image, main_score, name_main_score, write_results

Records = Sequence[Mapping[str, Any]]
MeasuredImage = tuple[dict[str, Any], list[Any]]  # what tells it from others, and what each evaluator measured


class ImageEvaluator(DatasetEvaluator):
    """One kind of result of a dataset, measured image by image; subclasses give ``measure`` and ``score``.

    ``score_image``, ``truth`` and ``details`` are for scores of single images, pictures and tables: those that a
    subclass does not give are missing there, and nothing else is.

    Args:
        dataset_name: registered.
        output_folder: where predictions are written; None: nowhere.

    Attributes:
        switch: the key under ``MODEL.MASK_FORMER.TEST`` that has the model give this result.
        entry_key: in the dataset's entries, says that they have labels for it.
        json_key: in the dataset's metadata, names a file that has them instead; "": none may.
        num_classes: K of the dataset, where a model must have as many.
        details: what ``score`` found besides, for ``evaluation.json``: see ``maskformer.evaluation.results``.
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

    def score_image(self, measured: Any) -> dict[str, dict[str, float]]:  # noqa: ARG002
        """The scores of one image, by kind of result and metric as in ``score``; nan where nothing is to be judged.

        Args:
            measured: what ``measure`` gave of it; tuples may have become lists.
        """
        return {}

    def truth(self, example: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """The label of one image in the form of a model's output, to be drawn; empty where it cannot be.

        Args:
            example: entry of the dataset.
        """
        return {}

    def reset(self) -> None:
        """Forget all images."""
        self._measured: list[Any] = []
        self.details: dict[str, Any] = {}

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
            Path(self.output_folder, file_name).write_text(json_text(content), encoding="utf-8")


class ImageByImageEvaluators(DatasetEvaluators):
    """Detectron2's combination of evaluators, which may keep what it measures in a journal.

    Args:
        evaluators: of one dataset.
        output_folder: where they write their results, with scores of single images and classes; None: nowhere.
    """

    def __init__(self, evaluators: Sequence[ImageEvaluator], output_folder: str | None = None):
        super().__init__(list(evaluators))
        self.evaluators = evaluators
        self.output_folder = output_folder
        self._journal: Journal | None = None
        self._pictures: KeptPictures | None = None
        self._images: list[MeasuredImage] = []

    def keep_in(self, journal: Journal, draw: Draw | None = None) -> None:
        """From now on, images go to a journal, and are counted in ``evaluate``, with those that it held before.

        Args:
            journal: of this evaluation.
            draw: makes the pictures of the worst and best images, which the output folder gets; None: it gets none.
        """
        self._journal = journal
        self._pictures = None if draw is None else KeptPictures(journal.folder / "pictures", draw)

    def reset(self) -> None:
        """Forget all images but those of the journal."""
        super().reset()
        self._images = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Measure some images.

        Args:
            inputs: entries of the dataset, with ``dataset_index`` where there is a journal.
            outputs: the model's, one for each.
        """
        for example, output in zip(inputs, outputs, strict=True):
            measured = [evaluator.measure(example, output) for evaluator in self.evaluators]
            image = describe_image(example), measured
            if self._journal is None:
                self._images.append(image)
                continue
            if self._pictures is not None:  # first: an image that the journal has is not seen again
                self._offer(example, output, measured)
            self._journal.append(example["dataset_index"], json.dumps(image, separators=(",", ":")).encode())

    def _offer(self, example: dict[str, Any], output: dict[str, Any], all_measured: list[Any]) -> None:
        """Have the picture of an image kept, drawn as that kind of result which gives its score."""
        assert self._pictures is not None
        of_evaluator = [e.score_image(measured) for e, measured in zip(self.evaluators, all_measured, strict=True)]
        scores = {kind: each for of_kind in of_evaluator for kind, each in of_kind.items()}
        name = name_main_score([{"scores": scores}])
        if name is not None:
            evaluator = next(e for e, of_kind in zip(self.evaluators, of_evaluator, strict=True) if name[0] in of_kind)
            index = example["dataset_index"]
            self._pictures.offer(index, main_score(scores), example, evaluator.truth, output)

    def evaluate(self) -> dict[str, Any]:
        """The scores of all, on the main process; the same as without a journal, in the order of the dataset."""
        described = []
        for evaluator in self.evaluators:
            evaluator.reset()
        indices = []
        for index, facts, all_measured in self._gather():
            indices.append(index)
            of_kind: dict[str, dict[str, float]] = {}
            for evaluator, measured in zip(self.evaluators, all_measured, strict=True):
                evaluator.add(measured)
                of_kind.update(evaluator.score_image(measured))
            described.append({**facts, "scores": of_kind})
        scores: dict[str, Any] = super().evaluate()
        if comm.is_main_process() and self.output_folder is not None:
            details = [evaluator.details for evaluator in self.evaluators]
            rows = write_results(self.output_folder, self.evaluators[0].name, scores, details, described)
            if self._pictures is not None:
                self._pictures.publish(list(zip(indices, rows, strict=True)), Path(self.output_folder))
        if self._journal is not None:
            self._journal.finish()
        return scores

    def _gather(self) -> Iterator[tuple[int, dict[str, Any], list[Any]]]:
        """The images of all processes, which are none but on the main one, with an index that rises."""
        if self._journal is None:
            for index, image in enumerate(itertools.chain(*comm.gather(self._images))):
                yield index, *image
            return
        lines = dict(itertools.chain(*comm.gather(list(self._journal.lines()))))
        for index in sorted(lines):
            facts, measured = json.loads(lines.pop(index))
            yield index, facts, measured
