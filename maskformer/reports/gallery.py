"""The demo's gallery: a row of pictures an image, a contact sheet, the loss curve and a page that shows them all.

All pictures are (height,width,3) uint8 RGB.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maskformer.data.files.reading import read_segment_ids
from maskformer.structures import PanopticResult

from .media import read_picture
from .pages import picture_url, write_page
from .tasks import TASKS, ClassTable, draw_panoptic

SCALE = 3  # of the pictures, over the images
GAP = 8  # pixels between pictures
HEADING_HEIGHT = 44
HEADINGS = ("image", "annotation", "panoptic", "semantic", "instance")
BACKGROUND = (255, 255, 255)
INK = "#282c34"


def make_row(
    record: dict[str, Any], segment: Callable[[np.ndarray], dict[str, Any]], classes: ClassTable
) -> list[np.ndarray]:
    """The pictures of one image, in the order of ``HEADINGS``; results that the model does not give are blank.

    Args:
        record: a Detectron2 panoptic dataset dict.
        segment: RGB image -> the model's output.
        classes: K names and colours.
    """
    image = read_picture(record["file_name"], record.get("bands"))
    output = segment(image)
    enlarged = cv2.resize(image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    results = []
    for task in map(TASKS.__getitem__, HEADINGS[2:]):
        is_there = task.key in output
        drawn = task.draw(image, task.read(output), classes, scale=SCALE) if is_there else np.full_like(enlarged, 255)
        results.append(drawn)
    annotated = PanopticResult(torch.tensor(read_segment_ids(record["pan_seg_file_name"])), record["segments_info"])
    return [enlarged, draw_panoptic(image, annotated, classes, scale=SCALE), *results]


def join_row(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size side by side."""
    gap = np.full((pictures[0].shape[0], GAP, 3), BACKGROUND, dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=1)


def make_sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
    """All rows under one another, with headings."""
    width, dpi = rows[0].shape[1], 100
    figure = Figure(figsize=((width + 0.01) / dpi, (HEADING_HEIGHT + 0.01) / dpi), dpi=dpi)  # matplotlib truncates
    for index, heading in enumerate(HEADINGS):
        middle = (index + 0.5) / len(HEADINGS)
        figure.text(middle, 0.5, heading, color=INK, fontsize=19, ha="center", va="center")
    gap = np.full((GAP, width, 3), BACKGROUND, dtype=np.uint8)
    parts = [part for row in rows for part in (gap, row)][1:]
    return np.concatenate([_to_picture(figure), *parts], axis=0)


def _to_picture(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def read_losses(log: Path) -> list[tuple[int, float]]:
    """(iteration, total loss) from ``metrics.json``, where it is a number; of an iteration told twice, the last."""
    entries = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    losses = {entry["iteration"]: entry["total_loss"] for entry in entries if "total_loss" in entry}
    return sorted((iteration, loss) for iteration, loss in losses.items() if loss is not None)


def draw_curve(losses: Sequence[tuple[int, float]]) -> np.ndarray:
    """The loss over iterations."""
    figure = Figure(figsize=(9, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([iteration for iteration, _ in losses], [loss for _, loss in losses], color="#2f6fde", linewidth=1.8)
    axes.set(xlabel="iteration", ylabel="loss")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="#e6e8ec")
    axes.spines[["top", "right"]].set_visible(False)
    return _to_picture(figure)


def write_gallery(
    page: Path,
    title: str,
    summary: str,
    scores: Sequence[tuple[str, str, float]],
    rows: Sequence[np.ndarray],
    curve: np.ndarray,
) -> None:
    """Write one HTML file that holds everything, pictures included.

    Args:
        page: the file, in a folder that exists.
        title: heading of the page.
        summary: a sentence under it.
        scores: (task, metric, percent).
        rows: one picture an image, its columns as in ``HEADINGS``.
        curve: the loss curve.
    """
    drawn = [(", ".join(HEADINGS), picture_url(row)) for row in rows]
    training = [("loss over iterations", picture_url(curve))]
    sections = [
        {"heading": "Held-out images", "columns": HEADINGS, "is_wide": True, "pictures": drawn},
        {"heading": "Training", "columns": (), "is_wide": True, "pictures": training},
    ]
    write_page(page, "gallery.html", {"title": title, "summary": summary, "scores": scores, "sections": sections})


def write_index(page: Path, title: str, pictures: Sequence[Path]) -> None:
    """Write a page that shows pictures, which stay files beside it.

    Args:
        page: the file.
        title: heading of the page.
        pictures: in the page's folder.
    """
    shown = [(picture.name, quote(os.fsencode(picture.name))) for picture in pictures]
    section = {"heading": "", "columns": (), "is_wide": False, "pictures": shown}
    content = {"title": title, "summary": f"{len(pictures)} pictures", "sections": [section]}
    write_page(page, "gallery.html", content)
