from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.utils.events import EventStorage

from maskformer.config import load_config
from maskformer.engine.hooks import trackers
from maskformer.engine.hooks.trackers import MlflowWriter, Tracker, WandbWriter, check_installed
from maskformer.structures import InputError

PICTURE = np.full((4, 6, 3), 200, np.uint8)
CONFIG = {"SOLVER.MAX_ITER": 40, "DATASETS.OWN.x.classes": ["a, b", "ß"], "LONG": "x" * 9000}


def run_parts(writer_class: type[Tracker], folder: Path) -> None:
    """A training of 40 iterations that is stopped after its 30th, and goes on from its checkpoint of the 20th."""
    first, second = (writer_class(str(folder), CONFIG) for _ in range(2))
    with EventStorage() as storage:
        for iteration in (9, 19, 29):
            storage.iter = iteration
            storage.put_scalars(total_loss=100.0 - iteration, bad=float("nan"), **{"sem_seg/IoU-a, (b)": 3.0})
            first.write()
            if iteration == 19:
                checkpoint = json.loads(json.dumps(first.state_dict()))
        first.write_pictures({"validation/a, b": PICTURE})
        first.close()
    second.load_state_dict(checkpoint)
    with EventStorage(start_iter=20) as storage:
        for iteration in (29, 39):
            storage.iter = iteration
            storage.put_scalar("total_loss", 100.0 - iteration)
            second.write()
        second.close()


@pytest.mark.slow  # writes hundreds of small files
def test_mlflow_has_one_run_of_a_training_and_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gardens")
    uri = f"file:{tmp_path / 'mlruns'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = tmp_path / "out put"
    run_parts(MlflowWriter, folder)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("gardens").experiment_id])
    assert run.info.run_name == "out put" and run.info.status == "FINISHED"
    assert run.data.params["SOLVER.MAX_ITER"] == "40" and run.data.params["LONG"] == "x" * 500
    assert run.data.tags["report"] == str(folder / "report.html")
    losses = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "total_loss")}
    assert losses == {9: 91.0, 19: pytest.approx(86), 29: pytest.approx(71.0, abs=10), 39: pytest.approx(66.0)}
    assert run.data.metrics["sem_seg/IoU-a_ _b_"] == 3.0 and "bad" not in run.data.metrics
    assert [file.path for file in client.list_artifacts(run.info.run_id, "validation/a_ b")]


def wandb_records(path: Path) -> Iterator[Any]:
    """W&B's records in a file of an offline run: LevelDB's log format, after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # too little of a block is left for another part
            place += 32768 - place % 32768
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow  # starts W&B's process twice
def test_wandb_has_one_run_of_a_training_and_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "out put"
    folder.mkdir()
    run_parts(WandbWriter, folder)
    shown = "".join(capfd.readouterr())
    assert "Tracking run" not in shown and "wandb sync" not in shown
    wandb.teardown()  # its process has written all when it has ended
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    runs = [record.run for record in records if record.HasField("run")]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {(runs[0].run_id, "maskformer", "out put")}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["SOLVER.MAX_ITER"] == 40 and config["report"] == str(folder / "report.html")
    lines = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    losses = [(line["iteration"], line["total_loss"]) for line in lines if "total_loss" in line]
    # The 29th was written twice, before the stop and after it; its loss is a median of all that there were then.
    assert [iteration for iteration, _ in losses] == [9, 19, 29, 29, 39]
    assert not any("bad" in line for line in lines)
    (picture,) = [line for line in lines if "validation/a, b" in line]
    assert picture["iteration"] == 29 and list(folder.rglob("a, b_*.png"))


class Unreachable(Tracker):
    """A service that cannot be reached at first."""

    attempts, written = 0, ()

    def start(self) -> str:
        self.attempts += 1
        if self.attempts < 3:
            raise ConnectionError("no route\nto the host")
        return "run"

    def log(self, run: str, iteration: int, values: Mapping[str, float]) -> None:
        self.written += (iteration,)

    def finish(self, run: str) -> None:
        raise OSError("gone again")


def test_service_that_cannot_be_reached_is_told_once_and_tried_less_and_less(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    writer = Unreachable(str(tmp_path), {})
    with EventStorage() as storage:
        for iteration in range(10):
            storage.iter = iteration
            storage.put_scalar("total_loss", 1.0)
            writer.write()
        writer.close()
    assert writer.attempts == 3
    assert writer.written == (8, 9)  # after pauses of 2 and 4 writes; tries at 0, 3 and 8
    (line, later) = capsys.readouterr().err.splitlines()
    assert "Unreachable" in line and "no route" in line and "gone again" in later


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_service_that_is_not_installed_is_refused_with_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch):
    check_installed(["tensorboard"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=rf"LOG.WRITERS is .*{name}.*pip install 'maskformer\[{name}\]'"):
        check_installed(["tensorboard", name])


@pytest.mark.parametrize("value", ["['wandb', 'wandb']", "['json']", "['TensorBoard']"])
def test_other_writers_are_refused(value: str):
    with pytest.raises(InputError, match=r"LOG.WRITERS is .* expected .* tensorboard, wandb and mlflow"):
        load_config("", ["LOG.WRITERS", value])
