"""What an evaluation leaves besides its means, for people and programs: ``evaluation.json`` and ``per_image.json``.

Scores are in percent, and null where there is nothing to judge. docs/train.md explains the fields.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.events import get_event_storage, has_event_storage

from maskformer.files import json_text, unfinished

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_SCORES = {"panoptic_seg": "PQ", "sem_seg": "mIoU", "segm": "InstancePQ"}  # of an image; the first there is counts
SIZES = ("small (< 32²)", "medium (< 96²)", "large")  # pixels, as COCO has them
SIZE_LIMITS = (32**2, 96**2)

Scores = Mapping[str, Mapping[str, float]]  # by kind of result and metric


def describe_image(example: Mapping[str, Any]) -> dict[str, Any]:
    """What tells an image of a dataset from others, as JSON has it; None for what its entry does not say."""
    numbers = {key: _plain(example.get(key)) for key in ("image_id", "height", "width")}
    return {"file_name": str(example["file_name"]), **numbers}


def _plain(value: Any) -> Any:
    """A number or text of an entry, which may be of any type."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, (int, str)) else str(value)


def name_main_score(images: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Kind and metric of the score that images are ordered by; None where none of ours is measured."""
    scores: Scores = next((image["scores"] for image in images), {})
    return next(((kind, metric) for kind, metric in MAIN_SCORES.items() if metric in scores.get(kind, ())), None)


def main_score(scores: Scores) -> float:
    """The score that an image is ordered by; nan where there is nothing to judge."""
    name = name_main_score([{"scores": scores}])
    return float("nan") if name is None else scores[name[0]][name[1]]


def size_of(area: float) -> int:
    """The index in ``SIZES`` of an area in pixels."""
    return sum(area >= limit for limit in SIZE_LIMITS)


def write_results(
    folder: str, dataset: str, scores: Scores, details: Sequence[Mapping[str, Any]], images: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write both files, each whole or not at all; a disk that refuses costs a warning.

    Args:
        folder: of the dataset's results.
        dataset: its name.
        scores: what is returned; metrics with "-" are of single classes, which are in the details.
        details: of each evaluator: "per_class", by kind of result; "confusion"; "by_size"; "boundary".
        images: what ``describe_image`` gave, and "scores", in the order of the dataset.

    Returns:
        The images, each with its "score" that they are ordered by.
    """
    means = {
        kind: {name: score for name, score in of_kind.items() if "-" not in name} for kind, of_kind in scores.items()
    }
    evaluation = {
        "version": VERSION,
        "dataset": dataset,
        "iteration": get_event_storage().iter if has_event_storage() else None,
        "scores": means,
        **_join(details),
    }
    name = name_main_score(images)
    rows = [{**image, "score": main_score(image["scores"]), "scores": image["scores"]} for image in images]
    per_image = {"version": VERSION, "dataset": dataset, "measure": None if name is None else name[1], "images": rows}
    try:
        write_json(Path(folder, "evaluation.json"), evaluation)
        write_json(Path(folder, "per_image.json"), per_image)
    except OSError as error:
        logger.warning("The scores of classes and images cannot be written to %s: %s.", folder, error.strerror or error)
    return rows


def _join(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of all evaluators; of several confusion matrices, that of pixels, or else the first."""
    per_class = {kind: rows for each in details for kind, rows in each.get("per_class", {}).items()}
    matrices = [each["confusion"] for each in details if "confusion" in each]
    matrices.sort(key=lambda matrix: matrix["unit"] != "pixels")
    of_rows = [[row["class"] for row in rows] for rows in per_class.values()]
    joined: dict[str, Any] = {
        "classes": matrices[0]["classes"] if matrices else max(of_rows, key=len, default=[]),
        "per_class": per_class,
        "by_size": [row for each in details for row in each.get("by_size", ())],
    }
    boundaries = [each["boundary"] for each in details if "boundary" in each]
    optional = {"confusion": matrices[:1], "boundary": boundaries[:1]}
    return {**joined, **{key: found[0] for key, found in optional.items() if found}}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that any program reads, whole or not at all.

    Raises:
        OSError: the disk refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as temporary:
        temporary.write_text(json_text(content), encoding="utf-8")
