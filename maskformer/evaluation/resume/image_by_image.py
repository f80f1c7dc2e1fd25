"""Evaluators whose work on one image is a record that can be kept on disk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from .journal import Journal


class ImageEvaluator(Protocol):
    """What an evaluator has besides Detectron2's methods; ``process`` measures and adds each image."""

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Raise an ``InputError`` where the truth lacks something that measuring the entries of the dataset needs."""
        raise NotImplementedError

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> Any:
        """All that is to be known of one image: plain numbers, text, lists and dicts with text as keys."""
        raise NotImplementedError

    def add(self, measured: Any) -> None:
        """Count an image; numbers and text are those of ``measure``, tuples may have become lists."""
        raise NotImplementedError


class ImageByImageEvaluators(DatasetEvaluators):
    """Detectron2's combination of evaluators, which may keep what it measures in a journal.

    Args:
        evaluators: each with the methods of ``ImageEvaluator``.
        output_folder: where they write their results; None: nowhere.
    """

    def __init__(self, evaluators: Sequence[DatasetEvaluator], output_folder: str | None = None):
        super().__init__(list(evaluators))
        self.evaluators: Sequence[Any] = evaluators
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
        if self._journal is not None:
            self._count(self._journal)
        scores: dict[str, Any] = super().evaluate()
        if self._journal is not None:
            self._journal.finish()
        return scores

    def _count(self, journal: Journal) -> None:
        images = dict(itertools.chain(*comm.gather(list(journal.lines()))))  # none but on the main process
        for index in sorted(images):
            for evaluator, measured in zip(self.evaluators, json.loads(images.pop(index)), strict=True):
                evaluator.add(measured)
