"""The folder of a run as a training and its evaluation leave it, with made-up numbers and real JPEG files."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = '<script>alert("1")</script>\' onload=alert(2)'
NAMES = ["grass", HOSTILE, "sky", "pole 10", "pole 9", "never seen"]


def write_run(
    folder: Path,
    *,
    names: list[str] = NAMES,
    num_images: int = 60,
    num_pictures: int = 2,
    picture_size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Path:
    """Writes all files of a run, with so many worst and best pictures each; returns the folder."""
    rng = np.random.default_rng(seed)
    inference = folder / "inference" / "garden_val"
    (inference / "pictures").mkdir(parents=True)
    _write(folder / "run.json", run_facts(seed))
    lines = [json.dumps(line) for line in metric_lines(rng)]
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")
    _write(inference / "evaluation.json", evaluation(rng, names))
    scores = [round(float(score), 3) for score in rng.beta(4, 2, num_images) * 100]
    images = [
        {"file_name": f"/data/garden/{index:05d}.jpg", "image_id": index, "height": 480, "width": 640, "score": score,
         "scores": {"panoptic_seg": {"PQ": score}, "sem_seg": {"mIoU": score, "pACC": score}}}
        for index, score in enumerate(scores)
    ]  # fmt: skip
    _write(inference / "per_image.json", {"version": 1, "dataset": "garden_val", "measure": "PQ", "images": images})
    order = sorted(images, key=lambda image: image["score"])
    chosen = {"worst": order[:num_pictures], "best": order[::-1][:num_pictures]}
    jpeg = _draw(rng, picture_size)
    pictures = {key: [_save_layers(inference, image, jpeg) for image in kept] for key, kept in chosen.items()}
    _write(inference / "pictures.json", {"version": 1, **pictures})
    return folder


def run_facts(seed: int = 0) -> dict[str, Any]:
    """What run.json says."""
    return {
        "version": 1,
        "command": ["train_net.py", "--config-file", "my garden.yaml", "SEED", str(seed)],
        "kind": "training",
        "started": "2026-11-27T11:00:00+00:00",
        "finished": "2026-11-27T14:12:05+00:00",
        "seconds": 11525.3,
        "config_file": "my garden.yaml",
        "changed": {
            "SEED": [-1, seed],
            "SOLVER.MAX_ITER": [40000, 1000 + seed],
            "DATASETS.TRAIN": [[], ["garden_train"]],
        },
        "device": "cpu: 2 cores",
        "processes": 1,
        "peak_memory_mb": 1812.4,
        "versions": {"python": "3.11.2", "torch": "2.7.0", "maskformer": f"0.3.{seed}"},
        "data": [{"dataset": "garden_train", "images": 200}],
        "model": {"architecture": "MaskFormer", "parameters": 41_300_000},
        "weights": "",
        "iterations": 1000,
    }


def metric_lines(rng: np.random.Generator, num: int = 3000) -> list[dict[str, Any]]:
    """Losses every twenty iterations and three evaluations."""
    lines: list[dict[str, Any]] = []
    for iteration in range(19, 20 * num, 20):
        loss = 20 * math.exp(-iteration / 6000) + 2 + rng.normal() * 0.3
        parts = {"loss_ce": 0.2 * loss, "loss_mask": 0.3 * loss, "loss_dice": 0.5 * loss, "loss_ce_0": loss}
        lines.append({"iteration": iteration, "total_loss": loss, "lr": 1e-4 * (1 - iteration / 60000), **parts})
    for share in (1, 2, 3):
        kinds = {"sem_seg/mIoU": 20.0 * share, "sem_seg/IoU-grass": 3.0, "panoptic_seg/PQ": 15.0 * share}
        lines[num * share // 3 - 1].update(kinds)
    return lines


def evaluation(rng: np.random.Generator, names: list[str]) -> dict[str, Any]:
    """What evaluation.json says; of the last class nothing is known."""
    known = len(names) - 1
    iou = [*(float(score) for score in rng.beta(3, 2, known) * 100), None]
    pixels = [int(count) for count in rng.integers(1000, 1e6, known)] + [0]
    counts = [[true, true, pixels[true]] for true in range(known)]
    wrong = rng.integers(0, known, (8 * known, 2))
    counts += [
        [int(t), int(p), 1 + int(pixels[t] * rng.beta(1, 12))] for t, p in sorted(set(map(tuple, wrong))) if t != p
    ]
    return {
        "version": 1,
        "dataset": "garden_val",
        "iteration": 999,
        "scores": {
            "sem_seg": {"mIoU": 54.321, "mBoundaryIoU": 40.0, "pACC": 81.5},
            "panoptic_seg": {"PQ": 43.21, "SQ": 70.0, "RQ": 60.0, "PQ_th": None},
        },
        "classes": names,
        "per_class": {
            "sem_seg": [
                {"class": name, "IoU": score, "BoundaryIoU": score and 0.8 * score, "pixels": count}
                for name, score, count in zip(names, iou, pixels)
            ],
            "panoptic_seg": [
                {"class": name, "PQ": score and 0.9 * score, "SQ": score, "RQ": score, "TP": 3, "FP": 1, "FN": 12}
                for name, score in zip(names, iou)
            ],
        },
        "confusion": {"unit": "pixels", "classes": names, "counts": counts},
        "by_size": [
            {"measure": "PQ", "size": "small (< 32\N{SUPERSCRIPT TWO})", "objects": 1200, "score": 12.3},
            {"measure": "PQ", "size": "medium", "objects": 300, "score": 34.5},
            {"measure": "PQ", "size": "large", "objects": 0, "score": None},
        ],
        "boundary": {"mIoU": 54.321, "mBoundaryIoU": 40.0},
    }


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of noise, the worst that can be compressed."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _save_layers(folder: Path, image: dict[str, Any], jpeg: bytes) -> dict[str, Any]:
    names = {layer: f"pictures/{image['image_id']:05d}_{layer}.jpg" for layer in ("picture", "truth", "prediction")}
    for name in names.values():
        (folder / name).write_bytes(jpeg)
    return {"file_name": image["file_name"], "score": image["score"], **names}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
