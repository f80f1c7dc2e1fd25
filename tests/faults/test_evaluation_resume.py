"""Evaluations and predictions that are killed again and again end with the scores and files of one that was not.

MASKFORMER_FAULT_KILLS says how many kills there are of each kind; the ledger's unit is images.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from tiny_training import CONFIG, REPOSITORY, TINY, TinyTraining

from maskformer.config import load_config
from maskformer.demo.shapes import generate_shapes

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("MASKFORMER_FAULT_KILLS", "1"))
IMAGES = 60 + 4 * KILLS  # a fault needs some to happen in
EVALUATED = [
    *("DATASETS.TEST", "('shapes_panoptic_val',)", "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0"),
    *("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "0.0"),
]
Ledger = Callable[..., None]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=1, num_val=IMAGES, image_size=(64, 80), seed=0)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, with classes far enough apart that there are segments."""
    torch.manual_seed(0)
    model = build_model(load_config(str(REPOSITORY / CONFIG), [*TINY, *EVALUATED]))
    with torch.no_grad():
        model.sem_seg_head.predictor.class_embed.weight.mul_(20)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.fixture(scope="module")
def evaluate(datasets: Path, weights: str) -> Callable[[Path, int], subprocess.Popen[str]]:
    """Starts an evaluation in so many processes."""

    def start(output: Path, processes: int) -> subprocess.Popen[str]:
        words = ["--eval-only", f"--num-gpus={processes}", *EVALUATED, "MODEL.WEIGHTS", weights]
        return TinyTraining(datasets).start(output, *words)

    return start


@pytest.fixture(scope="module")
def uninterrupted(evaluate: Callable[[Path, int], subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory):
    """The results of one evaluation in one process."""
    output = tmp_path_factory.mktemp("whole")
    finish(evaluate(output, 1))
    return results_of(output)


def finished_lines(output: Path) -> int:
    """Images that are on disk."""
    return sum(path.read_bytes().count(b"\n") for path in output.glob("inference/*/partial-*/*.lines"))


def kill(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started, without a word."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until(process: subprocess.Popen[str], is_time: Callable[[], bool], limit: float = 600) -> None:
    """Wait for a moment in a process that is not to end before; the limit is for a machine that is very busy."""
    end = time.monotonic() + limit
    while not is_time():
        assert process.poll() is None, process.communicate()[0][-3000:]
        if time.monotonic() > end:
            kill(process)
            pytest.fail(f"waited {limit:.0f} s in vain")
        time.sleep(0.005)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a good end; what was printed."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed[-3000:]
    return printed


def kill_again_and_again(
    start: Callable[[int], subprocess.Popen[str]], count: Callable[[], int]
) -> tuple[int, list[float]]:
    """Kill runs at random moments between their first image and the last.

    Args:
        start: from how many were killed before to the next run.
        count: images that are finished on disk.

    Returns:
        How many images are finished, and for each killed run the seconds to its first image.
    """
    rng, kept, seconds = random.Random(0), 0, []
    while len(seconds) < KILLS and kept < IMAGES:  # on a busy machine, all may be finished before they can be killed
        share = (IMAGES - kept) // (KILLS - len(seconds) + 1)
        goal, begin = kept + rng.randint(1, max(1, share)), time.monotonic()
        process = start(len(seconds))
        wait_until(process, lambda before=kept: count() > before)
        seconds.append(time.monotonic() - begin)
        wait_until(process, lambda goal=goal: count() >= goal)
        time.sleep(rng.random() * 0.02)
        kill(process)
        kept = count()
    return kept, seconds


def results_of(output: Path) -> dict[str, bytes]:
    """Scores and all files that evaluators wrote."""
    files = {path.name: path.read_bytes() for path in (output / "inference").rglob("*") if path.suffix == ".json"}
    return {**files, "scores": (output / "metrics.json").read_bytes()}


def test_killed_evaluation_goes_on_and_has_the_same_scores_and_files(
    evaluate: Callable[[Path, int], subprocess.Popen[str]],
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    ledger: Ledger,
) -> None:
    """Two processes and one take turns."""
    kept, seconds = kill_again_and_again(
        lambda number: evaluate(tmp_path, 2 - number % 2), lambda: finished_lines(tmp_path)
    )
    printed = finish(evaluate(tmp_path, 2 - len(seconds) % 2))
    (measured_before,) = map(int, re.findall(r"(\d+) images were measured before", printed))
    assert kept == measured_before
    assert results_of(tmp_path) == uninterrupted
    assert {"coco_instances_results.json", "predictions.json", "sem_seg_predictions.json"} < uninterrupted.keys()
    assert not list(tmp_path.glob("inference/*/partial-*"))
    name = "SIGKILL in an evaluation, then another number of processes"
    ledger(name, injected=len(seconds), survived=len(seconds), lost=kept - measured_before, seconds=seconds)


def predict(datasets: Path, weights: str, output: Path) -> subprocess.Popen[str]:
    """Start to draw the validation images."""
    words = ["--config-file", CONFIG, "--weights", weights, "--input", str(datasets / "shapes" / "val")]
    command = [sys.executable, "-W", "ignore", "-m", "maskformer.tools.predict", *words]
    return subprocess.Popen(
        [*command, "--output", str(output), "--resume", *TINY, *EVALUATED],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def drawn_images(output: Path) -> int:
    return len(list(output.glob("*_ids.json")))


def test_killed_predictions_go_on_and_leave_the_same_files(
    datasets: Path, weights: str, tmp_path: Path, ledger: Ledger
) -> None:
    finish(predict(datasets, weights, tmp_path / "whole"))
    killed = tmp_path / "killed"
    kept, seconds = kill_again_and_again(lambda _: predict(datasets, weights, killed), lambda: drawn_images(killed))
    printed = finish(predict(datasets, weights, killed))
    assert f"{IMAGES} of {IMAGES} inputs drawn ({kept} of them before)" in printed
    files = {path.name: path.read_bytes() for path in killed.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(files) == 3 * IMAGES + 1  # and the page
    ledger("SIGKILL in predictions", injected=len(seconds), survived=len(seconds), lost=0, seconds=seconds)
