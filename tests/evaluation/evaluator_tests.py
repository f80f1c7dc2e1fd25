"""What holds for every evaluator: a class of tests to inherit."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from maskformer.evaluation import ImageByImageEvaluators, ImageEvaluator, Journal
from maskformer.structures import InputError

Output = dict[str, Any]


class EvaluatorTests:
    """Inherit it as ``class TestMyEvaluator(EvaluatorTests)``, set the attributes and write ``output``.

    Attributes:
        evaluator: the class.
        dataset: a registered dataset of two images or more, which a fixture of the test file may make.
        files: what it writes into its output folder.
    """

    evaluator: ClassVar[type[ImageEvaluator]]
    dataset: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()

    def output(self, record: dict[str, Any], index: int) -> Output:
        """What a model that makes mistakes gives for an image of the dataset."""
        raise NotImplementedError

    def build(self, folder: Path | None = None) -> ImageEvaluator:
        """The evaluator, after what is checked before a training."""
        evaluator = self.evaluator(self.dataset, None if folder is None else str(folder))
        evaluator.check(DatasetCatalog.get(self.dataset))
        return evaluator

    def pairs(self) -> list[tuple[dict[str, Any], Output]]:
        """Entries of the dataset and the model's outputs."""
        records = [{**record, "dataset_index": index} for index, record in enumerate(DatasetCatalog.get(self.dataset))]
        return [(record, self.output(record, index)) for index, record in enumerate(records)]

    def scores_of(self, evaluator: Any, batches: Sequence[Sequence[tuple[dict[str, Any], Output]]]) -> str:
        """The scores, as text in which nan equals nan."""
        for batch in batches:
            evaluator.process([record for record, _ in batch], [output for _, output in batch])
        return json.dumps(evaluator.evaluate())

    @pytest.fixture
    def expected(self) -> str:
        """The scores of all images at once, some of which are neither 0 nor 100."""
        text = self.scores_of(self.build(), [self.pairs()])
        assert any(0 < score < 100 for kind in json.loads(text).values() for score in kind.values())
        return text

    def test_images_one_by_one_have_the_scores_of_all_at_once(self, expected: str) -> None:
        assert self.scores_of(self.build(), [[pair] for pair in self.pairs()]) == expected

    def test_reset_forgets_all_images(self, expected: str) -> None:
        evaluator = self.build()
        record, output = self.pairs()[0]
        evaluator.process([record], [output])
        evaluator.reset()
        assert self.scores_of(evaluator, [self.pairs()]) == expected

    def test_two_processes_have_the_scores_of_one(self, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each sees a part of the images; the last stands for the main one, where the others' parts arrive."""
        sent: list[Any] = []
        monkeypatch.setattr(comm, "gather", lambda part: sent.append(part) or list(sent))
        pairs = self.pairs()
        for rank, shard in enumerate((pairs[:1], pairs[1:])):
            monkeypatch.setattr(comm, "is_main_process", lambda rank=rank: rank == 1)
            text = self.scores_of(self.build(), [shard])
            assert text == (expected if rank == 1 else "null")

    def test_no_image_has_no_score(self) -> None:
        """It is a sentence or nan, and not 0 as of a bad model."""
        try:
            scores = json.loads(self.scores_of(self.build(), []))
        except InputError:
            return
        assert all(math.isnan(score) for kind in scores.values() for score in kind.values())

    def test_what_is_measured_of_an_image_survives_json(self) -> None:
        for record, output in self.pairs():
            text = json.dumps(self.build().measure(record, output))
            assert json.dumps(json.loads(text)) == text

    def test_the_truth_in_the_form_of_an_output_has_every_score_of_an_image(self) -> None:
        evaluator = self.build()
        for record, output in self.pairs():
            truth = evaluator.truth(record)
            if not truth:
                pytest.skip("it gives none, so nothing is drawn")
            if "sem_seg" in truth:
                truth["sem_seg"] = truth["sem_seg"].clamp(max=(evaluator.num_classes or 0) - 1)  # K: ignored
            (best,) = evaluator.score_image(evaluator.measure(record, truth)).values()
            (scores,) = evaluator.score_image(evaluator.measure(record, output)).values()
            assert list(best.values()) == pytest.approx([100] * len(best))
            assert min(scores.values()) < 100

    def test_tables_of_an_evaluation_are_of_its_classes(self, expected: str) -> None:
        evaluator = self.build()
        assert self.scores_of(evaluator, [self.pairs()]) == expected
        if not evaluator.details:
            pytest.skip("it gives none")
        (rows,) = evaluator.details["per_class"].values()
        counts = {"sem_seg": "pixels", "panoptic_seg": "TP", "segm": "objects"}
        assert rows and any(row[counts[kind]] for kind in evaluator.details["per_class"] for row in rows)
        confusion = evaluator.details.get("confusion", {"classes": [], "counts": []})
        assert all(0 <= index <= len(confusion["classes"]) for *pair, _ in confusion["counts"] for index in pair)

    @pytest.mark.parametrize("first", [0, 1])
    def test_evaluation_that_is_taken_up_has_the_scores_of_one(self, expected: str, first: int, tmp_path: Path) -> None:
        pairs = self.pairs()
        done, rest = pairs[len(pairs) - first :], pairs[: len(pairs) - first]  # the last were measured first
        for part in (done, rest):
            evaluators = ImageByImageEvaluators([self.build()])
            evaluators.keep_in(Journal(str(tmp_path), "a", resume=True))
            for record, output in part:
                evaluators.process([record], [output])
        assert json.dumps(evaluators.evaluate()) == expected
        assert list(tmp_path.iterdir()) == []

    def test_files_are_written_to_the_folder_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        for folder in (None, tmp_path / "out"):
            self.scores_of(self.build(folder), [self.pairs()])
        paths = itertools.chain((tmp_path / "out").glob("*"), (tmp_path / "elsewhere").iterdir())
        assert {path.name for path in paths} == set(self.files)
