"""What a report shows of an evaluation, alone or beside another one of the same dataset: plain lists for its template.

All scores are in percent; None stands for what was not measured.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from maskformer.structures import BadImageError

from .pages import picture_file_url
from .run_folder import LAYERS, Confusion, Evaluation, ShownPicture

KINDS = {"panoptic_seg": "panoptic", "sem_seg": "semantic", "segm": "instance"}  # what people call them, in this order
MAIN_SCORES = {"panoptic_seg": "PQ", "sem_seg": "mIoU", "segm": "AP"}
CLASS_SCORES = {"panoptic_seg": "PQ", "sem_seg": "IoU", "segm": "AP"}
COUNTS = ("pixels", "objects", "TP", "FP", "FN")  # all other columns are in percent

WEAKEST = 6  # classes, and confusions, that are told first
GRID_CLASSES = 25  # whose confusions are drawn; the others are one column
PAIRS = 300  # confusions in the table
SHOWN_PICTURES = 20  # worst, and best
CHANGED_PICTURES = 10  # each way
BINS = 20  # of the distribution of scores


def describe_evaluation(
    ours: Evaluation, theirs: Evaluation | None, other_name: str, picture_bytes: int
) -> dict[str, Any]:
    """All that the template shows of it.

    Args:
        ours: of the run that is reported.
        theirs: of the run that is compared, on the same dataset.
        other_name: what that run is called.
        picture_bytes: how large a picture may be.
    """
    other = Evaluation(ours.dataset) if theirs is None else theirs
    return {
        "dataset": ours.dataset,
        "iteration": ours.iteration,
        "is_compared": theirs is not None,
        "cards": _choose_cards(ours, other),
        "scores": _compare_scores(ours, other),
        "weakest": _find_weakest(ours),
        "classes": _tabulate_classes(ours.per_class),
        "class_changes": _compare_classes(ours, other),
        "confusion": None if ours.confusion is None else _describe_confusion(ours.confusion),
        "by_size": _compare_sizes(ours, other),
        "boundary": [(name, value, other.boundary.get(name)) for name, value in ours.boundary.items()],
        "images": _describe_images(ours),
        "image_changes": _compare_images(ours, other),
        "pictures": {
            title: [_embed(picture, other, other_name, picture_bytes) for picture in pictures[:SHOWN_PICTURES]]
            for title, pictures in (("Worst", ours.worst), ("Best", ours.best))
            if pictures
        },
    }


def count_pictures(ours: Evaluation, theirs: Evaluation | None) -> int:
    """How many pictures will be in the page, at most."""
    layers = len(LAYERS) + (theirs is not None)
    return layers * sum(len(pictures[:SHOWN_PICTURES]) for pictures in (ours.worst, ours.best))


def difference(ours: float | None, theirs: float | None) -> float | None:
    """Ours less theirs, where both are known."""
    return None if ours is None or theirs is None else ours - theirs


def _sorted_kinds(kinds: Any) -> list[str]:
    return sorted(kinds, key=lambda kind: [*KINDS, kind].index(kind))


def _choose_cards(ours: Evaluation, other: Evaluation) -> list[dict[str, Any]]:
    """The main score of each kind of result: its own, else the first that there is."""
    cards = []
    for kind in _sorted_kinds(ours.scores):
        scores = ours.scores[kind]
        metric = MAIN_SCORES.get(kind, "")
        metric = metric if metric in scores else next(iter(scores), "")
        if metric:
            theirs = other.scores.get(kind, {}).get(metric)
            change = difference(scores[metric], theirs)
            cards.append({"kind": KINDS.get(kind, kind), "metric": metric, "score": scores[metric], "change": change})
    return cards


def _compare_scores(ours: Evaluation, other: Evaluation) -> list[tuple[str, str, float | None, float | None]]:
    """(kind, metric, score, the other's) of all that either has."""
    rows = []
    for kind in _sorted_kinds({*ours.scores, *other.scores}):
        mine, its = ours.scores.get(kind, {}), other.scores.get(kind, {})
        rows += [(KINDS.get(kind, kind), name, mine.get(name), its.get(name)) for name in dict.fromkeys([*mine, *its])]
    return rows


def _find_weakest(evaluation: Evaluation) -> dict[str, Any] | None:
    """The classes of the lowest scores of the first kind of result that was measured by class."""
    for kind, measure in CLASS_SCORES.items():
        scores = [
            (row["class"], row[measure]) for row in evaluation.per_class.get(kind, []) if row.get(measure) is not None
        ]
        if scores:
            return {"measure": measure, "classes": sorted(scores, key=lambda entry: entry[1])[:WEAKEST]}
    return None


def _tabulate_classes(per_class: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """One row a class, with the columns of all kinds of results beside one another."""
    groups: list[tuple[str, list[str]]] = []
    table: dict[tuple[str, int], dict[tuple[int, str], Any]] = {}
    for kind in _sorted_kinds(per_class):
        rows = per_class[kind]
        columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "class"]
        groups.append((KINDS.get(kind, kind), columns))
        for row, key in zip(rows, _number_names(row["class"] for row in rows)):
            table.setdefault(key, {}).update({(len(groups), name): row.get(name) for name in columns})
    keys = [(index, name) for index, (_, columns) in enumerate(groups, start=1) for name in columns]
    if not table:
        return None
    return {
        "groups": groups,
        "columns": [name for _, name in keys],
        "rows": [(name, [cells.get(key) for key in keys]) for (name, _), cells in table.items()],
    }


def _number_names(names: Any) -> list[tuple[str, int]]:
    """Each name and how often it came before: some datasets have two classes of one name."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append((name, seen[name]))
        seen[name] += 1
    return numbered


def _compare_classes(ours: Evaluation, other: Evaluation) -> list[dict[str, Any]]:
    """The change of each class in each kind of result, the largest first."""
    changes = []
    for kind, measure in CLASS_SCORES.items():
        before, after = (
            dict(zip(_number_names(row["class"] for row in rows), (row.get(measure) for row in rows)))
            for rows in (other.per_class.get(kind, []), ours.per_class.get(kind, []))
        )
        for key, score in after.items():
            change = difference(score, before.get(key))
            if change is not None:
                entry = {"class": key[0], "kind": KINDS[kind], "measure": measure}
                changes.append({**entry, "ours": score, "theirs": before[key], "change": change})
    return sorted(changes, key=lambda entry: -abs(entry["change"]))


def _describe_confusion(confusion: Confusion) -> dict[str, Any]:
    """The most frequent confusions, and a grid of the classes of which there is most."""
    totals: Counter[int] = Counter()
    for (true, _), count in confusion.counts.items():
        totals[true] += count
    names = confusion.names
    wrong = [(pair, count) for pair, count in confusion.counts.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda entry: -entry[1])
    pairs = [(names[true], names[predicted], 100 * count / totals[true], count) for (true, predicted), count in wrong]
    return {
        "unit": confusion.unit,
        "pairs": pairs[:PAIRS],
        "num_pairs": len(pairs),
        "num_classes": len(totals.keys() - {len(names) - 1}),
        "num_shown": min(GRID_CLASSES, len(totals.keys() - {len(names) - 1})),
        "grid": _lay_out_grid(confusion, totals),
    }


def _lay_out_grid(confusion: Confusion, totals: Counter[int]) -> dict[str, Any]:
    """Percent of a true class (row) that was predicted as each class (column), as "none", and as all not shown."""
    none = len(confusion.names) - 1
    shown = sorted([index for index, _ in totals.most_common() if index != none][:GRID_CLASSES])
    place = {index: position for position, index in enumerate([*shown, none])}
    num, others = len(shown), len(shown) + 1
    shares = np.zeros((num + 1, num + 2))
    for (true, predicted), count in confusion.counts.items():
        if true in place:
            shares[place[true], place.get(predicted, others)] += 100 * count / totals[true]
    names = [*(confusion.names[index] for index in [*shown, none]), "other classes"]
    columns = [*range(num), *(column for column in (num, others) if shares[:, column].any())]
    rows = [*range(num), *([num] if shares[num].any() else [])]
    return {
        "columns": [names[column] for column in columns],
        "rows": [
            (names[row], [(names[column], float(shares[row, column]), row == column) for column in columns])
            for row in rows
        ],
    }


def _compare_sizes(ours: Evaluation, other: Evaluation) -> dict[str, Any] | None:
    """Each measure (row) by size of the objects (column)."""
    theirs = {(row["measure"], row["size"]): row.get("score") for row in other.by_size}
    cells = {
        (row["measure"], row["size"]): {
            "score": (score := row.get("score")),
            "objects": row.get("objects") or 0,
            "change": difference(score, theirs.get((row["measure"], row["size"]))),
        }
        for row in ours.by_size
    }
    measures, sizes = (list(dict.fromkeys(row[key] for row in ours.by_size)) for key in ("measure", "size"))
    rows = [(measure, [cells.get((measure, size)) for size in sizes]) for measure in measures]
    return {"sizes": sizes, "rows": rows} if rows else None


def _describe_images(evaluation: Evaluation) -> dict[str, Any] | None:
    """How the scores of single images are distributed."""
    scores = [score for score in evaluation.images.values() if score is not None]
    if not scores:
        return None
    counts, edges = np.histogram(np.clip(scores, 0, 100), bins=BINS, range=(0, 100))
    return {
        "measure": evaluation.measure,
        "count": len(evaluation.images),
        "without": len(evaluation.images) - len(scores),
        "median": float(np.median(scores)),
        "bars": [(low, high, int(count), count / counts.max()) for low, high, count in zip(edges, edges[1:], counts)],
    }


def _compare_images(ours: Evaluation, other: Evaluation) -> list[dict[str, Any]]:
    """The images that lost most and those that gained most."""
    changes = [
        (change, name) for name, score in ours.images.items() if (change := difference(score, other.images.get(name)))
    ]
    changes.sort()
    losses = [entry for entry in changes[:CHANGED_PICTURES] if entry[0] < 0]
    gains = [entry for entry in changes[-CHANGED_PICTURES:] if entry[0] > 0]
    return [
        {"image": name, "ours": ours.images[name], "theirs": other.images[name], "change": change}
        for change, name in losses + gains
    ]


def _embed(picture: ShownPicture, other: Evaluation, other_name: str, picture_bytes: int) -> dict[str, Any]:
    """A picture with its layers, the other run's prediction among them where it shows the same picture."""
    files = dict(picture.files)
    for shown in (*other.worst, *other.best):
        if shown.file_name == picture.file_name and "prediction" in shown.files:
            files[f"prediction of {other_name}"] = shown.files["prediction"]
    layers = []
    for name, file in files.items():
        try:
            layers.append((name, picture_file_url(file, most_bytes=picture_bytes)))
        except (BadImageError, OSError):
            continue  # the others are of use without it
    return {"name": picture.file_name, "score": picture.score, "layers": layers}
