"""predict with work in the background, in batches: the files are those of one image after the other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from tiny_model import EOMT_CONFIG, TINY_EOMT, TINY_OPTIONS

from maskformer.config import load_config
from maskformer.predictor import Predictor
from maskformer.reports.media import Source, Video, VideoFile
from maskformer.tools import predict

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = ((64, 80), (80, 64), (64, 90), (48, 96), (60, 72), (64, 80), (70, 70))  # with 64 on the shorter side, 5 buckets
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index, size in enumerate(SIZES):
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        resized = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
        Image.fromarray(resized).save(folder / f"{index}.png")
    (folder / "3_broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def command(images: Path, shapes_config: str, tiny_weights: str) -> Command:
    def build(output: Path, *arguments: object, inputs: Path = images) -> list[str]:
        fixed = ["--config-file", shapes_config, "--weights", tiny_weights, "--input", str(inputs)]
        return [*fixed, "--output", str(output), *map(str, arguments), *TINY_OPTIONS]

    return build


def files_of(folder: Path) -> dict[str, bytes]:
    """Their contents; the page names the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"FOLDER") for path in files}


@pytest.mark.parametrize("what", [("--task", "instance"), ("--task", "semantic"), (), ("--as-dataset",)])
def test_files_are_those_of_one_image_after_the_other(
    command: Command, tmp_path: Path, what: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for name, arguments in (("one/seen", ("--workers", 0)), ("more/seen", ("--workers", 3))):
        assert predict.main(command(tmp_path / name, *what, *arguments, "--confidence-threshold", 0.1)) == 1
        captured = capsys.readouterr()
        lines = (captured.out + captured.err).replace(name, "").splitlines()
        told.append([line for line in lines if not line.startswith("Drawing")])  # which says how fast
    assert told[0] == told[1]
    assert "7 of 8" in told[0][0] and "3_broken.jpg" in told[0][-1]
    one, more = files_of(tmp_path / "one"), files_of(tmp_path / "more")
    assert one == more
    assert len(one) >= 22


def test_batches_change_results_by_rounding_alone(command: Command, tmp_path: Path) -> None:
    for size in (1, 3):
        arguments = ("--task", "semantic", "--workers", 2, "--batch-size", size)
        assert predict.main(command(tmp_path / str(size), *arguments)) == 1
    for index in range(len(SIZES)):
        one, three = (np.asarray(Image.open(tmp_path / str(size) / f"{index}_ids.png")) for size in (1, 3))
        assert (one == three).mean() > 0.999


@pytest.mark.parametrize("architecture", ["MaskFormer", "EoMT", "SemanticSegmentor"])
def test_examples_of_one_bucket_give_together_what_each_gives_alone(
    architecture: str, shapes_config: str, images: Path, tmp_path: Path
) -> None:
    """Where sizes differ within a bucket, padding is what it is alone."""
    options = [*TINY_OPTIONS, "INPUT.MIN_SIZE_TEST", "0", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "32"]
    if architecture == "EoMT":
        tiny = [str(word) for pair in TINY_EOMT.items() for word in pair]
        shapes_config, options = EOMT_CONFIG, [*tiny, "INPUT.MIN_SIZE_TEST", "0"]
    if architecture == "SemanticSegmentor":
        options += ["MODEL.META_ARCHITECTURE", architecture, "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"]
        for task in ("PANOPTIC", "INSTANCE"):
            options += [f"MODEL.MASK_FORMER.TEST.{task}_ON", "False"]
    torch.manual_seed(0)
    model = build_model(load_config(shapes_config, options))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    predictor = Predictor.from_config(
        load_config(shapes_config, [*options, "MODEL.WEIGHTS", str(tmp_path / "model.pth")])
    )
    random = np.random.default_rng(0)
    sizes = ((64, 80), (64, 80), (62, 75), (64, 79), (33, 80))
    examples = [predictor.example(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    buckets = [predictor.bucket(example) for example in examples]
    assert buckets[0] == buckets[1]
    together = [example for example, bucket in zip(examples, buckets, strict=True) if bucket == buckets[0]]
    assert len(together) == {"MaskFormer": 5, "EoMT": 4, "SemanticSegmentor": 2}[architecture]
    batch = predictor.outputs(together, task="semantic", threshold=0.1)
    for example, output in zip(together, batch, strict=True):
        (alone,) = predictor.outputs([example], task="semantic", threshold=0.1)
        assert alone["sem_seg"].std() > 1e-4
        torch.testing.assert_close(output["sem_seg"], alone["sem_seg"], rtol=1e-4, atol=1e-5)


def test_frames_are_drawn_in_order(command: Command, tmp_path: Path) -> None:
    with VideoFile(tmp_path / "clip.mp4", frame_rate=5) as file:
        for grey in range(40, 240, 10):
            file.write(np.full((64, 80, 3), grey, np.uint8))
    for workers in (0, 2):
        output = tmp_path / f"{workers}.mp4"
        arguments = ("--workers", workers, "--batch-size", 3, "--confidence-threshold", 1.0)
        assert predict.main(command(output, *arguments, inputs=tmp_path / "clip.mp4")) == 0
    drawn = [frame.mean() for frame in Video(Source.of_file(str(tmp_path / "2.mp4")))]
    assert len(drawn) == 20
    assert drawn == sorted(drawn) and drawn[-1] - drawn[0] > 150
    assert (tmp_path / "0.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()


def test_a_folder_that_cannot_be_written_ends_the_run(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert predict.main(command(tmp_path / "file" / "out", "--workers", 2)) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and error.count("cannot be written") == 1


@pytest.mark.parametrize(("option", "value"), [("--workers", "-1"), ("--batch-size", "0"), ("--workers", "many")])
def test_numbers_that_are_none_are_refused(
    command: Command, tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        predict.main(command(tmp_path, f"{option}={value}"))
    assert option in capsys.readouterr().err


SLOW = """
import sys, time
from maskformer.predictor import Predictor
from maskformer.tools import predict
compute = Predictor.outputs
Predictor.outputs = lambda *args, **options: time.sleep(1) or compute(*args, **options)
sys.exit(predict.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_interrupted_run_leaves_whole_files_and_goes_on(command: Command, images: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal; on a slow device, work is left when the first result is seen."""
    many = tmp_path / "many"
    many.mkdir()
    for index in range(20):
        shutil.copy(images / "0.png", many / f"{index}.png")
    assert predict.main(command(tmp_path / "whole", inputs=many)) == 0
    output = tmp_path / "out"
    arguments = command(output, "--workers", 2, inputs=many)
    words = [sys.executable, "-W", "ignore", "-c", SLOW, *arguments]
    with subprocess.Popen(words, cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not list(output.glob("*_ids.json")) and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        error = process.communicate(timeout=60)[1]
        with pytest.raises(ProcessLookupError):  # nobody of the group is left
            os.killpg(process.pid, 0)
    assert process.returncode == 130 and b"Traceback" not in error
    whole, begun = files_of(tmp_path / "whole"), files_of(output)
    assert {name: whole[name] for name in begun} == begun
    assert len(begun) < len(whole)
    assert predict.main(command(output, "--resume", inputs=many)) == 0
    assert files_of(output) == whole
