"""What a run left in its folder, for whoever shows it: run.json, metrics.json and inference/DATASET/*.json.

Files may be missing (an older version, a killed run), cut short, edited or of a later version. What cannot be used is
left out, and a sentence in ``notes`` says so.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskformer.data.files.json_files import read_json
from maskformer.structures import InputError, printable

VERSION = 1  # of the files that are understood
AVERAGED = "ema"  # the folder for what a training measures of the moving average of its weights
LAYERS = ("picture", "truth", "prediction")  # of the worst and best pictures

OTHER_METRICS = ("total_loss", "lr", "images_per_second")
LAYER_LOSS = re.compile(r"loss_[a-z_]*[a-z]")  # without a layer's number: of the last layer
SHOWN_SCORES = {
    "panoptic_seg": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
    "sem_seg": ("mIoU", "mBoundaryIoU", "mACC", "pACC"),
    "segm": ("AP", "AP50", "APs", "APm", "APl"),
}
SCORE = re.compile(rf"(?:(?P<dataset>.+)/)?(?P<kind>{'|'.join(SHOWN_SCORES)})/(?P<metric>\w+)")

Scores = dict[str, dict[str, float | None]]  # percent, by kind of result and metric
Points = list[tuple[int, float]]  # (iteration, value), in order


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for each.

    Attributes:
        unit: what is counted, in the plural.
        names: of the K classes, and of "none" as the last.
        counts: (true class, predicted class) -> how many.
    """

    unit: str
    names: list[str]
    counts: dict[tuple[int, int], int]


@dataclass(frozen=True)
class ShownPicture:
    """One of the worst or best pictures.

    Attributes:
        file_name: as in ``Evaluation.images``.
        score: in percent, if it has one.
        files: those of ``LAYERS`` that are there.
    """

    file_name: str
    score: float | None
    files: dict[str, Path]


@dataclass
class Evaluation:
    """What was measured on one dataset; what was not is empty.

    Attributes:
        dataset: its name.
        iteration: after which it was measured; None outside a training.
        scores: without those of single classes.
        per_class: by kind of result, an entry a class: ``class`` and numbers.
        confusion: which classes were taken for which.
        by_size: entries with ``measure``, ``size``, ``objects`` and ``score``.
        boundary: scores of regions and of their boundaries, by metric.
        measure: the name of the images' score.
        images: file name, without folders that all have in common -> score of the image.
        worst: worst first.
        best: best first.
    """

    dataset: str
    iteration: int | None = None
    scores: Scores = field(default_factory=dict)
    per_class: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    confusion: Confusion | None = None
    by_size: list[dict[str, Any]] = field(default_factory=list)
    boundary: dict[str, float | None] = field(default_factory=dict)
    measure: str = "score"
    images: dict[str, float | None] = field(default_factory=dict)
    worst: list[ShownPicture] = field(default_factory=list)
    best: list[ShownPicture] = field(default_factory=list)


@dataclass
class RunFolder:
    """A run.

    Attributes:
        path: as the user gave it.
        facts: what ``run.json`` says.
        metrics: the points of each metric of which there is a curve.
        evaluations: by dataset.
        notes: what is missing, a sentence each.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Points] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(path: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        InputError: it is not the folder of a run.
    """
    evaluated = [
        file for folder in (path, path / AVERAGED) for file in sorted(folder.glob("inference/*/evaluation.json"))
    ]
    if not evaluated and not any((path / name).is_file() for name in ("run.json", "metrics.json")):
        state = "holds none of them" if path.is_dir() else "is no folder"
        raise InputError(
            f"{path} {state}; expected the OUTPUT_DIR of a training or evaluation, with run.json, metrics.json or "
            "inference/DATASET/evaluation.json."
        )
    run = RunFolder(path)
    run.facts = _read(path / "run.json", run.notes, "what was run is not shown") or {}
    _read_metrics(path / "metrics.json", run)
    if not evaluated:
        run.notes.append(
            "inference/DATASET/evaluation.json is missing: classes, confusions and pictures are not shown; evaluate "
            "with --eval-only."
        )
    for file in evaluated:
        evaluation = _read_evaluation(file, run.notes)
        if evaluation is not None:
            evaluation.dataset += " (moving average of the weights)" if path / AVERAGED in file.parents else ""
            run.evaluations[evaluation.dataset] = evaluation
    return run


def number(value: Any) -> float | None:
    """The value, where it is a finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e300 else None


def entries(content: Any, key: str) -> list[dict[str, Any]]:
    """The mappings in a list that stands under a key; none where there is no such list."""
    values = content.get(key) if isinstance(content, dict) else None
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def mapping(content: Any, key: str) -> dict[str, Any]:
    """The mapping that stands under a key; an empty one where there is none."""
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, dict) else {}


def _read(path: Path, notes: list[str], loss: str) -> dict[str, Any] | None:
    """The content of a file of a version that is known; else None and a note of what is lost by it."""
    name = "/".join(path.parts[-3 if path.parent.parent.name == "inference" else -1 :])
    if not path.is_file():
        notes.append(f"{name} is missing: {loss}.")
        return None
    try:
        content = read_json(path)
    except InputError:
        notes.append(f"{name} is no whole JSON file: {loss}.")
        return None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        notes.append(f"{name} is not of version {VERSION}, which this report reads: {loss}.")
        return None
    return content


def _numbers(entry: dict[str, Any]) -> dict[str, float | None]:
    return {name: number(value) for name, value in entry.items() if value is None or number(value) is not None}


def _read_metrics(path: Path, run: RunFolder) -> None:
    """The points of Detectron2's lines; those of before a resumed run's beginning that it wrote again go."""
    if not os.access(path, os.R_OK) or not path.is_file():
        run.notes.append("metrics.json is missing or cannot be read: there are no learning curves.")
        return
    unread, last = 0, -1
    for entry in _metric_lines(path):
        iteration = entry.pop("iteration", None) if entry is not None else None
        if entry is None:
            unread += 1
        elif type(iteration) is int:  # the scores of an evaluation outside a training have none
            if iteration < last:
                _forget_from(run.metrics, iteration)
            last = iteration
            _add(run.metrics, iteration, entry)
    if unread:
        run.notes.append(f"metrics.json: lines that are no JSON are left out ({unread}).")
    run.notes += _leave_out_non_finite(run.metrics)


def _metric_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if line.strip():
                yield entry if isinstance(entry, dict) else None


def is_shown(name: str) -> bool:
    """Whether there is a curve of a metric; those of single layers and classes are many."""
    score = SCORE.fullmatch(name)
    of_dataset = score is not None and score["metric"] in SHOWN_SCORES[score["kind"]]
    return of_dataset or name in OTHER_METRICS or LAYER_LOSS.fullmatch(name) is not None


def _forget_from(metrics: dict[str, Points], iteration: int) -> None:
    for points in metrics.values():
        while points and points[-1][0] >= iteration:
            points.pop()


def _add(metrics: dict[str, Points], iteration: int, entry: dict[str, Any]) -> None:
    for name, value in entry.items():
        if (type(value) in (int, float) or value is None) and is_shown(name):
            points = metrics.setdefault(name, [])
            if points and points[-1][0] == iteration:
                points.pop()
            points.append((iteration, math.nan if number(value) is None else value))


def _leave_out_non_finite(metrics: dict[str, Points]) -> list[str]:
    """Leave out what cannot be drawn; losses that are not finite are told, scores that are not are usual."""
    notes = []
    for name, points in metrics.items():
        metrics[name] = [point for point in points if math.isfinite(point[1])]
        lost = len(points) - len(metrics[name])
        if lost and name == "total_loss":
            notes.append(f"metrics.json: {lost} values of {name} are not finite and are left out of the curve.")
    return notes


def _read_evaluation(file: Path, notes: list[str]) -> Evaluation | None:
    content = _read(file, notes, "its scores are not shown")
    if content is None:
        return None
    dataset = content.get("dataset")
    evaluation = Evaluation(dataset if isinstance(dataset, str) else file.parent.name)
    evaluation.iteration = content.get("iteration") if type(content.get("iteration")) is int else None
    scores = mapping(content, "scores")
    evaluation.scores = {kind: _numbers(values) for kind, values in scores.items() if isinstance(values, dict)}
    per_class = mapping(content, "per_class")
    for kind in per_class:
        rows = [entry for entry in entries(per_class, kind) if isinstance(entry.get("class"), str)]
        evaluation.per_class[kind] = [{**_numbers(entry), "class": printable(entry["class"])} for entry in rows]
    evaluation.confusion = _read_confusion(mapping(content, "confusion"))
    evaluation.by_size = [
        {**{key: str(entry.get(key, "")) for key in ("measure", "size")}, **_numbers(entry)}
        for entry in entries(content, "by_size")
    ]
    evaluation.boundary = _numbers(mapping(content, "boundary"))
    short_names = _read_images(file.with_name("per_image.json"), evaluation, notes)
    _read_pictures(file.with_name("pictures.json"), evaluation, short_names, notes)
    return evaluation


def _read_confusion(content: dict[str, Any]) -> Confusion | None:
    names, counts = content.get("classes"), content.get("counts")
    if not isinstance(names, list) or not isinstance(counts, list):
        return None
    known = range(len(names) + 1)
    found = {}
    for entry in counts:
        if isinstance(entry, list) and len(entry) == 3 and all(type(value) is int for value in entry):
            true, predicted, count = entry
            if true in known and predicted in known and count > 0:
                found[true, predicted] = count
    return (
        Confusion(str(content.get("unit", "pixels")), [*(printable(str(name)) for name in names), "none"], found)
        if found
        else None
    )


def _read_images(file: Path, evaluation: Evaluation, notes: list[str]) -> dict[str, str]:
    """Fill in the scores of images; returns their names without the folders that all have in common, by the whole."""
    content = _read(file, notes, "there are no scores of single pictures")
    evaluation.measure = str(content.get("measure", "score")) if content else "score"
    scores = {
        entry["file_name"]: number(entry.get("score"))
        for entry in entries(content, "images")
        if isinstance(entry.get("file_name"), str)
    }
    common = os.path.commonprefix(list(scores)).rfind("/") + 1  # noqa: RUF071, cut at a folder's end
    evaluation.images = {name[common:]: score for name, score in scores.items()}
    return {name: name[common:] for name in scores}


def _read_pictures(file: Path, evaluation: Evaluation, short_names: dict[str, str], notes: list[str]) -> None:
    content = _read(file, notes, "the worst and best pictures are not shown")
    for key, pictures in (("worst", evaluation.worst), ("best", evaluation.best)):
        for entry in entries(content, key):
            inside = {layer: _inside(file.parent, entry.get(layer)) for layer in LAYERS}
            files = {layer: path for layer, path in inside.items() if path is not None}
            name = str(entry.get("file_name", ""))
            if files:
                shown = short_names.get(name, name.rpartition("/")[2])
                pictures.append(ShownPicture(shown, number(entry.get("score")), files))


def _inside(folder: Path, name: Any) -> Path | None:
    """The file of that name, unless it lies outside of the folder: a report holds nothing of elsewhere."""
    try:
        path = (folder / str(name)).resolve()
        return path if path.is_file() and path.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError):
        return None
