"""Several processes that share the inputs of one command write what one process writes, byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.files import folder_beside
from maskformer.tools import predict

sys.path.append(str(Path(__file__).parents[1] / "faults"))
from processes_of import ranks_of, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd names, names that differ in their endings alone, and one file that is no picture: 11 inputs, 10 pictures."""
    folder = tmp_path_factory.mktemp("images")
    names = ["a.jpg", "a.png", "b c.PNG", "ü.bmp", "d.e.f.jpg", "7.webp", "g.tif", "h.ppm", "ij.png", "k.jpeg"]
    for seed, name in enumerate(names):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 64), Image.Resampling.BILINEAR).save(folder / name)
    (folder / "e.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def command(images: Path, shapes_config: str, tiny_options: list[str], tiny_weights: str) -> Command:
    """The arguments of predict, for the folder of images or other inputs."""

    def build(output: Path, *arguments: object, inputs: tuple[Path, ...] = (images,)) -> list[str]:
        fixed = ["--config-file", shapes_config, "--weights", tiny_weights, "--input", *map(str, inputs)]
        return [*fixed, "--output", str(output), *map(str, arguments), *tiny_options]

    return build


def files_of(folder: Path) -> dict[str, bytes]:
    """Their contents; the page names the folder."""
    return {path.name: path.read_bytes().replace(bytes(folder), b"FOLDER") for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes of all images."""
    output = tmp_path_factory.mktemp("whole")
    assert predict.main(command(output)) == 1
    files = files_of(output)
    assert len(files) == 31
    assert {"predictions.html", "a_jpg.jpg", "a_png.png", "b c.PNG", "ü_ids.json", "d.e.f_ids.png"} < files.keys()
    return files


@pytest.mark.parametrize("count", [1, 3, 12])
def test_shards_together_write_what_one_process_writes(
    command: Command, whole: dict[str, bytes], tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
):
    """12 are more than there are inputs. The file that is no picture is the sixth of them: 7, a, a, b c, d.e.f, e."""
    codes = [predict.main(command(tmp_path, "--shard", f"{index}/{count}")) for index in reversed(range(count))]
    assert files_of(tmp_path) == whole
    assert codes == [int(index == 5 % count) for index in reversed(range(count))]
    *_, last = (line for line in capsys.readouterr().out.splitlines() if "drawn" in line)  # of shard 0
    assert last.startswith({1: "10 of 11", 3: "4 of 4", 12: "1 of 1"}[count] + f" inputs of shard 0/{count} drawn")


def test_shard_goes_on_where_it_was(
    command: Command, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for index in (0, 1):
        predict.main(command(tmp_path, "--shard", f"{index}/2"))
    (tmp_path / "a_png_ids.json").unlink()  # the third input
    left = [
        folder_beside(tmp_path / name) for name in ("a_png.png", "a_png_ids.json")
    ]  # as by a process that is killed
    others = folder_beside(tmp_path / "a_jpg.jpg")  # the second input, which shard 1 may be writing
    assert predict.main(command(tmp_path, "--shard", "0/2", "--resume")) == 0
    assert "6 of 6 inputs of shard 0/2 drawn (5 of them before)" in capsys.readouterr().out
    assert [Path(each.name).exists() for each in (*left, others)] == [False, False, True]
    others.cleanup()
    assert predict.main(command(tmp_path, "--shard", "2/3", "--resume")) == 1  # shards cut otherwise find all done
    assert "(2 of them before)" in capsys.readouterr().out
    assert files_of(tmp_path) == whole


@pytest.mark.parametrize(
    "shard", ["3/3", "1/0", "0/0", "-1/2", "1", "a/b", "1/2/3", "", "1.0/2", "\u0660/\u0662", "0/9999999999"]
)
def test_shard_that_is_none_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], shard: str
):
    assert predict.main(command(tmp_path / "out", f"--shard={shard}")) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: --shard is {shard!r}") and "0 to N - 1" in line
    assert not (tmp_path / "out").exists()


def test_mistakes_and_names_are_those_of_all_inputs_not_of_the_share(
    command: Command, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    two = (images / "a.jpg", images / "a.png")
    assert predict.main(command(tmp_path / "x.jpg", "--shard", "0/2", inputs=two)) == 2
    assert "is a file, but there are 2 inputs" in capsys.readouterr().err
    assert predict.main(command(tmp_path / "x.jpg", "--shard", "1/2", inputs=two[:1])) == 0
    assert predict.main(command(tmp_path / "x.jpg", "--shard", "0/2", inputs=two[:1])) == 0
    assert sorted(files_of(tmp_path)) == ["x.jpg", "x_ids.json", "x_ids.png"]
    broken = (images / "e.jpg", images / "a.png")  # of a share of one input, it is left out as of all
    assert predict.main(command(tmp_path / "out", "--shard", "0/2", inputs=broken)) == 1


def test_shards_of_a_dataset_are_joined_by_a_last_call(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def run(folder: str, *arguments: str) -> int:
        return predict.main(command(tmp_path / folder / "seen", "--as-dataset", *arguments))

    def all_files(folder: str) -> dict[Path, bytes]:
        root = tmp_path / folder
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert run("whole") == 1
    assert [run("shards", "--shard", f"{index}/2") for index in (1, 0)] == [1, 0]
    assert "--resume" in capsys.readouterr().out
    assert not (tmp_path / "shards" / "seen" / "dataset.yaml").exists()
    assert run("shards", "--shard", "0/2") == 0  # as often as wanted, while it is no dataset
    assert run("shards", "--resume") == 1
    assert all_files("shards") == all_files("whole")
    assert run("shards", "--shard", "0/2") == 2


def test_several_processes_show_no_window(shapes_config: str, images: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--config-file", shapes_config, "--input", str(images), "--shard", "0/2"]
    assert predict.main(words) == 2
    assert "--output" in capsys.readouterr().err


def start(*words: str) -> subprocess.Popen[str]:
    """A Python with these words, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_rank_of_torchrun_that_is_killed_is_started_again_and_all_is_written_once(
    command: Command, whole: dict[str, bytes], images: Path, tmp_path: Path
):
    """A picture that is left out ends no other rank, and is told in the exit code."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    process = start(*torchrun, "-m", "maskformer.tools.predict", *command(tmp_path))
    wait_until(lambda: len(list(tmp_path.glob("*_ids.json"))) >= 2)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    killed, times = time.time(), {path: path.stat().st_mtime for path in tmp_path.glob("*_ids.json")}
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "drawn" in out, err[-3000:]
    assert files_of(tmp_path) == whole
    assert err.count("e.jpg cannot be read") == 1, err
    (line,) = [line for line in out.splitlines() if "drawn" in line]  # one rank tells for all
    assert line.startswith("10 of 11 inputs drawn (") and "of them before" in line
    assert all(path.stat().st_mtime == time for path, time in times.items() if time < killed)


def test_more_ranks_than_devices_are_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in {"RANK": "0", "WORLD_SIZE": "999", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "999"}.items():
        monkeypatch.setenv(name, value)
    assert predict.main(command(tmp_path / "out")) == 2
    assert "999" in capsys.readouterr().err
