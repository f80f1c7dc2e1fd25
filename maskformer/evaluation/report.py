"""Where scores go: a table in the log, a line in ``metrics.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict
from tabulate import tabulate

from maskformer.structures import RunError


def format_scores(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for people, of everything but the scores of single classes.

    Args:
        results: dataset -> kind of result -> metric -> score; names with "-" are of single classes.
    """
    rows = [
        (dataset, kind, metric, score)
        for dataset, kinds in results.items()
        for kind, scores in kinds.items()
        for metric, score in scores.items()
        if "-" not in metric
    ]
    return tabulate(rows, headers=("dataset", "result", "metric", "score"), tablefmt="pipe", floatfmt=".2f")


def append_scores(path: str, results: Mapping[str, Any]) -> None:
    """Append one line of JSON, with the names that scores have in a training's ``metrics.json``.

    Args:
        path: the file, created where it is missing.
        results: nested by dataset (where there are several), kind of result and metric.
    """
    scores = {name: float(score) for name, score in flatten_results_dict(results).items()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(scores, sort_keys=True) + "\n")


def check_expected_results(expected: Sequence[Sequence[Any]], results: Mapping[str, Any]) -> None:
    """Hold scores to ``TEST.EXPECTED_RESULTS``.

    Args:
        expected: rows of [task, metric, score, tolerance]; with several datasets a task is "DATASET/task".
        results: as for ``append_scores``.

    Raises:
        RunError: a score is missing, not finite, or further away than the tolerance.
    """
    scores = flatten_results_dict(results)
    for task, metric, score, tolerance in expected:
        actual = scores.get(f"{task}/{metric}")
        if actual is None or not abs(actual - score) <= tolerance:
            raise RunError(
                f"TEST.EXPECTED_RESULTS expects {task} {metric} to be {score} within {tolerance}, but the evaluation "
                f"gave {'none' if actual is None else actual} (scores: {', '.join(scores) or 'none'})."
            )
