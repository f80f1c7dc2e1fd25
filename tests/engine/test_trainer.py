from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import nn

from maskformer.checkpoint import Checkpointer
from maskformer.config import load_config
from maskformer.engine import trainer as trainer_module
from maskformer.engine.trainer import Trainer
from maskformer.structures import InputError, RunError


@META_ARCH_REGISTRY.register()
class OneWeight(nn.Module):
    """Its loss is the weight itself, so that every step of SGD moves it by the learning rate."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: list[float]) -> dict[str, torch.Tensor]:
        return {"loss": self.weight.sum()}


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setattr(trainer_module, "build_train_loader", lambda cfg: iter(lambda: [0.0], None))
    options = {
        "MODEL.META_ARCHITECTURE": "OneWeight",
        "MODEL.DEVICE": "cpu",
        "DATASETS.TEST": "()",
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 1.0,
        "SOLVER.WEIGHT_DECAY": 0.0,
        "SOLVER.MOMENTUM": 0.0,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
        "SOLVER.POLY_LR_POWER": 1.0,
        "OUTPUT_DIR": str(tmp_path),
    }
    return load_config("", [str(word) for pair in options.items() for word in pair])


def trained(cfg: CfgNode, *, resume: bool = False) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_steps_follow_the_poly_schedule(cfg: CfgNode):
    assert trained(cfg).model.weight.item() == pytest.approx(-(1 + 0.75 + 0.5 + 0.25))


def test_steps_follow_the_multi_step_schedule(cfg: CfgNode):
    cfg.merge_from_list(
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(3,)", "SOLVER.GAMMA", "0.1"]
    )
    assert trained(cfg).model.weight.item() == pytest.approx(-(1 + 1 + 1 + 0.1))


def test_checkpoints_are_saved_by_ours(cfg: CfgNode, tmp_path: Path):
    trainer = trained(cfg)
    assert isinstance(trainer.checkpointer, Checkpointer)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_interrupted_run_resumes_where_it_stopped(cfg: CfgNode, tmp_path: Path):
    trained(cfg)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")  # after two steps
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert resumed.model.weight.item() == pytest.approx(-(1 + 0.75 + 0.5 + 0.25))


def test_without_resume_a_run_starts_anew(cfg: CfgNode):
    trained(cfg)
    assert trained(cfg).model.weight.item() == pytest.approx(-2.5)


def test_losses_and_rates_are_written_to_metrics_json(cfg: CfgNode, tmp_path: Path):
    trained(cfg)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == 3
    assert {"total_loss", "lr"} <= lines[-1].keys()


def test_input_error_of_the_loader_passes_through_training(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    def broken(_: CfgNode):
        raise InputError("Label a.png holds 7.")
        yield

    monkeypatch.setattr(trainer_module, "build_train_loader", broken)
    with pytest.raises(InputError, match=r"Label a\.png holds 7"):
        trained(cfg)


def test_results_of_each_dataset_have_their_own_folder(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer_module, "build_evaluator", lambda cfg, name, folder: (name, folder))
    assert Trainer.build_evaluator(cfg, "a_val") == ("a_val", str(tmp_path / "inference" / "a_val"))


@META_ARCH_REGISTRY.register()
class ClassesAlone(nn.Module):
    """The class layer of a model with as many classes as the configuration says."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.backbone = nn.Linear(1, 1)
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = nn.ModuleDict({"class_embed": nn.Linear(1, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)})


def test_training_starts_from_weights_of_other_classes_and_evaluation_does_not(cfg: CfgNode, tmp_path: Path):
    weights = str(tmp_path / "weights.pth")
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "ClassesAlone", "MODEL.WEIGHTS", weights])
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 150
    torch.save(Trainer.build_model(cfg).state_dict(), weights)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert torch.equal(trainer.model.backbone.weight, torch.load(weights, weights_only=True)["backbone.weight"])
    with pytest.raises(InputError, match=r"class_embed\.weight .* has shape \(150, 1\)"):
        Checkpointer(Trainer.build_model(cfg), str(tmp_path)).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)


class FixedScores(DatasetEvaluator):
    """Finds the same scores whatever the model says."""

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"sem_seg": {"mIoU": 44.5, "IoU-sky": 90.0}, "panoptic_seg": {"PQ": float("nan")}}


@pytest.fixture
def tested(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    """A run that evaluates on one dataset."""
    monkeypatch.setattr(trainer_module, "build_test_loader", lambda cfg, name, done: [[0.0]])
    monkeypatch.setattr(trainer_module, "build_evaluator", lambda cfg, name, folder: FixedScores())
    cfg.DATASETS.TEST = ("a_val",)
    return cfg


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_evaluation_alone_appends_its_scores_to_metrics_json(tested: CfgNode, tmp_path: Path):
    (tmp_path / "metrics.json").write_text('{"iteration": 3}\n')
    Trainer.test(tested, Trainer.build_model(tested))
    first, scores = metrics_of(tmp_path)
    assert first == {"iteration": 3}
    assert scores.keys() == {"sem_seg/mIoU", "sem_seg/IoU-sky", "panoptic_seg/PQ"}
    assert scores["sem_seg/mIoU"] == 44.5 and scores["panoptic_seg/PQ"] is None


def test_expected_results_are_held_to_after_a_training(tested: CfgNode):
    tested.TEST.EXPECTED_RESULTS = [["sem_seg", "mIoU", 44.0, 0.5]]
    results = trained_results(tested)
    assert results["sem_seg"]["mIoU"] == 44.5
    for row in (["sem_seg", "mIoU", 44.0, 0.4], ["panoptic_seg", "PQ", 1.0, 99.0], ["segm", "AP", 1.0, 99.0]):
        tested.TEST.EXPECTED_RESULTS = [row]
        with pytest.raises(RunError, match=rf"expects {row[0]} {row[1]} to be {row[2]} within"):
            trained_results(tested)


def trained_results(cfg: CfgNode) -> dict[str, dict[str, float]]:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.train()


def test_config_that_was_changed_after_loading_is_looked_at_again(cfg: CfgNode):
    cfg.SOLVER.MAX_ITER = -5
    with pytest.raises(InputError, match=r"SOLVER\.MAX_ITER is -5"):
        Trainer(cfg)


def test_scores_of_several_datasets_have_their_names(tested: CfgNode, tmp_path: Path):
    tested.DATASETS.TEST = ("a_val", "b_val")
    Trainer.test(tested, Trainer.build_model(tested))
    (scores,) = metrics_of(tmp_path)
    assert {"a_val/sem_seg/mIoU", "b_val/sem_seg/mIoU"} <= scores.keys()


def test_evaluation_in_a_training_is_told_once(tested: CfgNode, tmp_path: Path):
    trained(tested)
    told = [line for line in metrics_of(tmp_path) if "sem_seg/mIoU" in line]
    assert [line["iteration"] for line in told] == [4]  # by Detectron2's hook, after the last step


def test_scores_are_in_a_table_of_the_log(tested: CfgNode, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="maskformer"):
        Trainer.test(tested, Trainer.build_model(tested))
    (message,) = (message for message in caplog.messages if message.startswith("Scores in percent"))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in message.splitlines()[1:]]
    assert table[0] == ["dataset", "result", "metric", "score"]
    assert table[2:] == [["a_val", "sem_seg", "mIoU", "44.50"], ["a_val", "panoptic_seg", "PQ", "nan"]]


def test_only_the_main_process_tells_scores(tested: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    Trainer.test(tested, Trainer.build_model(tested))
    assert not (tmp_path / "metrics.json").exists()


def resumed_after_two_steps(cfg: CfgNode, tmp_path: Path, **solver: object) -> Trainer:
    """Train, then go on from the checkpoint after two steps with other keys of SOLVER."""
    trained(cfg)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    cfg.merge_from_list([word for key, value in solver.items() for word in (f"SOLVER.{key}", str(value))])
    return trained(cfg, resume=True)


@pytest.mark.parametrize(
    ("solver", "last_steps"),
    [
        ({"BASE_LR": 10.0}, 10 * (0.5 + 0.25)),
        ({"MAX_ITER": 6}, 4 / 6 + 3 / 6 + 2 / 6 + 1 / 6),
        ({"POLY_LR_POWER": 2.0}, 0.25 + 0.0625),
        ({"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (3,)}, 1 + 0.1),
        ({"WEIGHT_DECAY": 1.0}, None),
        ({"MOMENTUM": 0.5}, 0.5 + (0.25 + 0.5 * 0.25)),
    ],
)
def test_resumed_run_obeys_other_rates_and_schedules(
    cfg: CfgNode, tmp_path: Path, solver: dict[str, object], last_steps: float | None
):
    weight = resumed_after_two_steps(cfg, tmp_path, **solver).model.weight.item()
    if last_steps is None:  # of decay: gradient 1 plus the weight itself
        expected = -1.75 - 0.5 * (1 - 1.75)
        expected -= 0.25 * (1 + expected)
    else:
        expected = -1.75 - last_steps
    assert weight == pytest.approx(expected)


@pytest.mark.parametrize(
    ("solver", "key"),
    [({"OPTIMIZER": "ADAMW"}, r"SOLVER\.OPTIMIZER is ADAMW.* has SGD"), ({"MAX_ITER": 1}, r"SOLVER\.MAX_ITER is 1")],
)
def test_resumed_run_refuses_what_it_cannot_obey(cfg: CfgNode, tmp_path: Path, solver: dict[str, object], key: str):
    with pytest.raises(InputError, match=key):
        resumed_after_two_steps(cfg, tmp_path, **solver)


def test_writer_without_its_package_is_refused_before_the_first_step(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    cfg.LOG.WRITERS = ["mlflow"]
    with pytest.raises(InputError, match=r"pip install 'maskformer\[mlflow\]'"):
        Trainer(cfg)
