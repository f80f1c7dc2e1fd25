from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventStorage
from torch import nn

from maskformer.checkpoint import Checkpointer
from maskformer.config import load_config
from maskformer.data.loading.sampling import Sampler
from maskformer.data.loading.train_loader import TrainLoader
from maskformer.engine import trainer as trainer_module
from maskformer.engine.accelerator import Accelerator
from maskformer.engine.run_state import random_states, restore_metrics, set_random_states, stored_metrics
from maskformer.engine.trainer import Trainer
from maskformer.structures import BadImageError, InputError


def draw_numbers() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.randn(()))]


def through_a_file(content: Any) -> Any:
    """Saved, and read back as safely as checkpoints are."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class WithGenerator(Accelerator):
    """The CPU, with a random generator of its own as other devices have one."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.generator = torch.Generator()

    def random_states(self) -> dict[str, torch.Tensor | None]:
        return {**super().random_states(), "device": self.generator.get_state()}

    def set_random_states(self, states: dict[str, torch.Tensor]) -> None:
        super().set_random_states(states)
        self.generator.set_state(states["device"])


def test_all_generators_go_on_from_a_saved_state():
    accelerator = WithGenerator()
    draw_numbers()  # leaves half of a pair of normal numbers in Python's and NumPy's generators
    state = through_a_file(random_states(accelerator))
    expected = draw_numbers(), torch.rand(2, generator=accelerator.generator).tolist()
    draw_numbers()
    set_random_states(state, accelerator)
    assert (draw_numbers(), torch.rand(2, generator=accelerator.generator).tolist()) == expected


def test_a_device_without_a_generator_has_no_state():
    assert random_states(Accelerator("cpu"))["device"] is None


def test_metrics_go_on_with_their_last_values():
    storage = EventStorage(0)
    for storage.iter in range(30):
        storage.put_scalar("loss", storage.iter**2 / 7)
        if storage.iter == 24:
            storage.put_scalar("sem_seg/mIoU", 41.0, smoothing_hint=False)
    other = EventStorage(30)
    restore_metrics(other, through_a_file(stored_metrics(storage)))
    assert other.latest() == storage.latest()
    assert other.latest_with_smoothing_hint(20) == storage.latest_with_smoothing_hint(20)
    assert other.smoothing_hints() == storage.smoothing_hints()


@META_ARCH_REGISTRY.register()
class Noisy(nn.Module):
    """Its loss depends on the images, on a weight and on a random number."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: list[dict[str, float]]) -> dict[str, torch.Tensor]:
        value = sum(example["value"] for example in batch) + torch.rand(())
        return {"loss": ((self.weight - value) ** 2).sum()}


def read_value(record: dict[str, Any]) -> dict[str, Any]:
    if record["file_name"] == "bad":
        raise BadImageError("Image file bad is bad.")
    return {"value": float(record["file_name"]) + random.random()}


class Listed(DatasetEvaluator):
    """Finds the scores that a test gives, one after the other, and draws a random number; None: it is killed."""

    scores: Iterator[float | None] = iter(())

    def evaluate(self) -> dict[str, dict[str, float]]:
        random.random()
        score = next(Listed.scores)
        if score is None:
            raise Killed
        return {"sem_seg": {"mIoU": score}}


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setattr(trainer_module, "build_train_loader", lambda cfg: loader_of("0", "1", "2"))
    monkeypatch.setattr(trainer_module, "build_test_loader", lambda cfg, name, done: [])
    monkeypatch.setattr(trainer_module, "build_evaluator", lambda cfg, name, folder: Listed())
    options = {
        "MODEL.META_ARCHITECTURE": "Noisy",
        "MODEL.DEVICE": "cpu",
        "DATASETS.TEST": "()",
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 0.1,
        "SOLVER.MAX_ITER": 50,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.CHECKPOINT_PERIOD": 10,
        "LOG.TCAPPDLL_LINES": "True",
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    return load_config("", [str(word) for pair in options.items() for word in pair])


def loader_of(*names: str, **options: Any) -> TrainLoader:
    records = [{"file_name": name, "width": 1, "height": 1} for name in names]
    return TrainLoader(records, read_value, Sampler(0, torch.ones(len(names)).double()), batch_size=2, **options)


def trained(cfg: CfgNode, *, resume: bool = False) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    if not resume:
        torch.manual_seed(0)
    trainer.train()
    return trainer


def lines_of(folder: Path) -> list[dict[str, float]]:
    kept = {"iteration", "total_loss", "lr", "sem_seg/mIoU", "bad_images"}
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{name: line[name] for name in kept & line.keys()} for line in lines]


class Killed(BaseException):
    """Ends a run without anything that an exception sets going."""


def kill_at(iteration: int, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, *, resume: bool = False) -> None:
    """Run until the step of an iteration begins; what ``finally`` would still do is left out, as SIGKILL does."""
    run_step = Trainer.run_step

    def step(self: Trainer) -> None:
        if self.iter == iteration:
            raise Killed
        run_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", step)
        patch.setattr(Trainer, "after_train", lambda self: None)
        with pytest.raises(Killed):
            trained(cfg, resume=resume)


def test_resumed_run_writes_the_same_files_and_ends_with_the_same_weights(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = trained(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    kill_at(27, cfg, monkeypatch)  # the last checkpoint is of 19, which is an iteration of the writers too
    kill_at(45, cfg, monkeypatch, resume=True)  # of 39, likewise
    resumed = trained(cfg, resume=True)
    assert resumed.start_iter == 40
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "run")
    iterations = [line["iteration"] for line in lines_of(tmp_path / "killed")]
    assert iterations == [19, 39, 49]
    losses = [
        [
            line.split("train.loss : ")[1].split()[0]
            for line in (tmp_path / run / "tcappdll.log").read_text().splitlines()
        ]
        for run in ("run", "killed")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 50


def test_run_that_was_killed_before_its_first_checkpoint_leaves_no_lines(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained(cfg)
    log = tmp_path / "run" / "tcappdll.log"
    cfg.SOLVER.CHECKPOINT_PERIOD = 100
    for path in (tmp_path / "run").glob("*checkpoint*"):
        path.unlink()
    for path in (tmp_path / "run").glob("*.pth*"):
        path.unlink()
    kill_at(25, cfg, monkeypatch)  # a second run in the folder
    assert trained(cfg, resume=True).start_iter == 0
    assert [line["iteration"] for line in lines_of(tmp_path / "run")] == [19, 39, 49] * 2
    assert len(log.read_text().splitlines()) == 100


def test_scores_written_between_are_kept_when_lines_are_dropped(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kill_at(25, cfg, monkeypatch)
    with open(tmp_path / "run" / "metrics.json", "a") as file:
        file.write('{"sem_seg/mIoU": 12.0}\n{"iteration": 2')
    trained(cfg, resume=True)
    assert [line.get("iteration", line) for line in lines_of(tmp_path / "run")] == [{"sem_seg/mIoU": 12.0}, 19, 39, 49]


def test_evaluation_that_a_kill_cut_short_is_made_up_for(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC = ("a_val",), 10, "sem_seg/mIoU"
    Listed.scores = iter([40.0, None])  # the second evaluation, after the checkpoint of iteration 19, is killed
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_train", lambda self: None)
        with pytest.raises(Killed):
            trained(cfg)
    Listed.scores = iter([43.0, 42.0, 41.0, 39.0])
    resumed = trained(cfg, resume=True)
    scores = {line["iteration"]: line["sem_seg/mIoU"] for line in lines_of(tmp_path / "run") if "sem_seg/mIoU" in line}
    assert scores == {19: 43.0, 39: 41.0, 50: 39.0}  # Detectron2's writer comes every 20 iterations
    assert resumed.start_iter == 20
    best = Trainer(cfg)
    best.checkpointer.load(str(tmp_path / "run" / "model_best.pth"))
    assert best.iter == 19


def test_finished_run_that_is_resumed_evaluates_again_and_repeats_no_line(cfg: CfgNode, tmp_path: Path):
    cfg.DATASETS.TEST = ("a_val",)
    Listed.scores = iter([40.0, 40.0])
    trained(cfg)
    before = lines_of(tmp_path / "run")
    trained(cfg, resume=True)
    assert lines_of(tmp_path / "run") == before


def test_checkpoint_of_an_earlier_version_resumes_with_a_warning(cfg: CfgNode, caplog: pytest.LogCaptureFixture):
    trainer = Trainer(cfg)
    state = trainer.state_dict()
    del state["hooks"]["RunState"]
    state["iteration"] = 4
    os.makedirs(cfg.OUTPUT_DIR)
    Checkpointer(trainer.model, cfg.OUTPUT_DIR).save("model_0000004", trainer=state)
    assert trained(cfg, resume=True).start_iter == 5
    assert "of an earlier version: images and random numbers start anew" in caplog.text


def test_another_number_of_processes_is_told(cfg: CfgNode, caplog: pytest.LogCaptureFixture):
    first = trained(cfg)
    state = first.state_dict()
    state["hooks"]["RunState"]["random"] *= 2
    first.checkpointer.checkpointables.clear()
    first.checkpointer.save("model_final", trainer=state)
    trained(cfg, resume=True)
    assert "had 2 processes, this one has 1: the images of each step stay the same" in caplog.text


def test_skipped_images_are_counted_in_the_metrics_over_restarts(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = ("0", "1", "bad")
    monkeypatch.setattr(trainer_module, "build_train_loader", lambda cfg: loader_of(*names, max_bad_images=1))
    kill_at(25, cfg, monkeypatch)
    trained(cfg, resume=True)
    assert [line["bad_images"] for line in lines_of(tmp_path / "run")] == [1, 1, 1]


def test_too_many_bad_images_of_all_processes_stop_the_run(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer_module, "build_train_loader", lambda cfg: loader_of("0", "1", "bad", max_bad_images=1))
    monkeypatch.setattr(
        "detectron2.utils.comm.all_gather", lambda data: [data, {5}] if isinstance(data, set) else [data]
    )
    with pytest.raises(InputError, match="2 training images cannot be used"):
        trained(cfg)


def stream_of(trainer: Trainer, count: int) -> list[Any]:
    return list(islice(trainer._trainer.data_loader, count))


def test_images_go_on_where_the_checkpoint_was_saved(cfg: CfgNode):
    trained(cfg)
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert stream_of(resumed, 3) == list(islice(loader_of("0", "1", "2"), 53))[50:]
