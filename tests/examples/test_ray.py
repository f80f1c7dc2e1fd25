"""The example with Ray: a real local cluster, of whose two workers one is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as rle_codec
from tiny_model import TINY

import maskformer

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "examples" / "predict_with_ray.py"


def png(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize((80 + seed % 7, 64), Image.Resampling.BILINEAR).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes | None]:
    """Also what is no picture: nothing, no bytes, text, a cut file."""
    good: dict[str, Any] = {f"ü {index}.png": png(index) for index in range(200)}
    return {**good, "none": None, "empty": b"", "text": b"no picture", "cut": png(0)[:60]}


@pytest.fixture
def predict_with_ray(shapes_config: str, tiny_options: list[str], tiny_weights: str):
    def command(*words: object) -> list[str]:
        model = ["--model", shapes_config, "--weights", tiny_weights, "--workers", "2", "--batch-size", "4"]
        return [sys.executable, "-W", "ignore", str(SCRIPT), *model, *map(str, words), *tiny_options]

    return command


def titles_below(driver: int) -> dict[int, bytes]:
    """What Ray calls the processes under its raylet, which the driver started."""
    parents, titles = {}, {}
    for folder in (folder for folder in Path("/proc").iterdir() if folder.name.isdigit()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()
    return {process: title for process, title in titles.items() if parents.get(parents[process]) == driver}


def kill_a_busy_worker(driver: subprocess.Popen[str]) -> bool:
    """Whichever first maps pictures, half a second into that; False: none was seen at it."""
    while driver.poll() is None:
        for process, title in titles_below(driver.pid).items():
            if title.startswith(b"ray::MapWorker") and b".submit" in title:
                time.sleep(0.5)
                os.kill(process, signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_parquet_of_bytes_becomes_parquet_of_segments_although_a_worker_is_killed(
    predict_with_ray, pictures: dict[str, bytes | None], shapes_config: str, tiny_weights: str, tmp_path: Path
):
    table = pa.table({"id": list(pictures), "image": list(pictures.values()), "other": [0] * len(pictures)})
    for part in range(4):
        pq.write_table(table.slice(51 * part, 51), tmp_path / f"{part}.parquet")
    words = ["--input", *tmp_path.glob("*.parquet"), "--image-column", "image", "--name-column", "id"]
    driver = subprocess.Popen(
        predict_with_ray(*words, "--output", tmp_path / "segments"),
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    killed = kill_a_busy_worker(driver)
    printed, _ = driver.communicate(timeout=400)
    assert killed and driver.returncode == 0, printed[-3000:]
    rows = {row["name"]: row for row in pq.read_table(tmp_path / "segments").to_pylist()}
    assert sorted(pq.read_table(tmp_path / "segments")["name"].to_pylist()) == sorted(pictures)
    assert {name for name, row in rows.items() if row["error"]} == {"none", "empty", "text", "cut"}
    keys = {key.replace(".", "__"): value for key, value in TINY.items() if key != "MODEL.DEVICE"}
    predictor = maskformer.load(shapes_config, tiny_weights, device="cpu", **keys)
    for name in ("ü 3.png", "ü 199.png"):
        result, row = predictor(Image.open(io.BytesIO(pictures[name]))), rows[name]
        assert (row["height"], row["width"]) == result.image_size
        assert len(row["segments"]) == len(result.segments) > 1
        for found, expected in zip(row["segments"], result.segments, strict=True):
            np.testing.assert_array_equal(rle_codec.decode(found["segmentation"]), expected.mask)
            assert (found["category_name"], found["area"]) == (expected.label, expected.area)
            assert found["score"] == pytest.approx(expected.score)


def test_one_bad_row_ends_nothing(pictures: dict[str, bytes | None], shapes_config: str, tiny_weights: str):
    """Without Ray's processes: what a worker does; Hugging Face's column of bytes and path too."""
    spec = importlib.util.spec_from_file_location("predict_with_ray", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    segmenter = example.Segmenter(shapes_config, tiny_weights, {k.replace(".", "__"): str(v) for k, v in TINY.items()})
    image = [{"bytes": content, "path": "x"} for content in pictures.values()][-5:]
    table = segmenter(pa.table({"name": list(pictures)[-5:], "image": image}))
    assert table.schema == example.ROW
    assert [len(row["segments"]) > 0 for row in table.to_pylist()] == [True, False, False, False, False]
    assert [row["error"] is None for row in table.to_pylist()] == [True, False, False, False, False]
