"""Two stages of warm-up: the released factors, in a training, and in one that is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from reference_cases import REFERENCE2, recipe_config
from torch import nn

from maskformer.config import load_config
from maskformer.engine import trainer as trainer_module
from maskformer.engine.optimizer import build_optimizer
from maskformer.engine.schedule import TwoStageWarmupPolyLR, build_lr_scheduler
from maskformer.engine.trainer import Trainer

REFERENCE = json.loads((REFERENCE2 / "eomt" / "schedules.json").read_text())


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@META_ARCH_REGISTRY.register()
class TwoWeights(nn.Module):
    """Its loss is the sum of its weights, so that every step of SGD moves each by its learning rate."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.inner = nn.ModuleDict({"encoder": Half()})  # as in EoMT: nothing in its name says that it is the backbone
        self.head = Half()

    @property
    def backbone(self) -> nn.Module:
        return self.inner["encoder"]

    def forward(self, batch: list[float]) -> dict[str, torch.Tensor]:
        return {"loss": self.inner["encoder"].weight.sum() + self.head.weight.sum()}

    def weights(self) -> tuple[float, float]:
        return self.head.weight.item(), self.inner["encoder"].weight.item()


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setattr(trainer_module, "build_train_loader", lambda cfg: iter(lambda: [0.0], None))
    options = {
        "MODEL.META_ARCHITECTURE": "TwoWeights",
        "MODEL.DEVICE": "cpu",
        "DATASETS.TEST": "()",
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 1.0,
        "SOLVER.BACKBONE_MULTIPLIER": 1.0,
        "SOLVER.WEIGHT_DECAY": 0.0,
        "SOLVER.MOMENTUM": 0.0,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "SOLVER.LR_SCHEDULER_NAME": "TwoStageWarmupPolyLR",
        "SOLVER.WARMUP_STAGES": (1, 2),
        "SOLVER.POLY_LR_POWER": 1.0,
        "OUTPUT_DIR": str(tmp_path),
    }
    return load_config("", [str(word) for pair in options.items() for word in pair])


def trained(cfg: CfgNode, *, resume: bool = False) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def schedule(stages: list[int], total: int, power: float = 0.9, lr: float = 1.0) -> TwoStageWarmupPolyLR:
    """Of two groups: all but the backbone, and the backbone."""
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "lr": lr, "warms_up_second": is_second} for is_second in (0, 1)
    ]
    return TwoStageWarmupPolyLR(torch.optim.SGD(groups), total, warmup_stages=stages, power=power)


@pytest.mark.parametrize("setting", REFERENCE["warmup"], ids=lambda setting: str(setting["total_steps"]))
def test_rates_are_the_released_schedules_to_the_last_bit(setting: dict[str, Any]):
    scheduler = schedule(setting["warmup_steps"], setting["total_steps"], lr=1e-4)
    for scheduler.last_epoch, *rates in setting["rows"]:
        assert scheduler.get_lr() == rates


@pytest.mark.parametrize(
    ("stages", "outside", "backbone"),
    [
        ([2, 0], [0, 1 / 2, 1, 1 / 2, 0], [0, 0, 1, 1 / 2, 0]),
        ([0, 2], [1, 3 / 4, 1 / 2, 1 / 4, 0], [0, 1 / 2, 1, 1 / 2, 0]),
        ([0, 0], [1, 3 / 4, 1 / 2, 1 / 4, 0], [1, 3 / 4, 1 / 2, 1 / 4, 0]),
        ([1, 2], [0, 1, 2 / 3, 1 / 3, 0], [0, 0, 1 / 2, 1, 0]),
    ],
)
def test_stages_of_any_length_are_worked_by_hand(stages: list[int], outside: list[float], backbone: list[float]):
    scheduler = schedule(stages, 4, power=1.0)
    for scheduler.last_epoch in range(5):
        assert scheduler.get_lr() == pytest.approx([outside[scheduler.last_epoch], backbone[scheduler.last_epoch]])
    scheduler.last_epoch = 7  # beyond the end it stays 0
    assert scheduler.get_lr() == [0, 0]


def test_a_training_warms_up_the_head_and_then_the_backbone(cfg: CfgNode, tmp_path: Path):
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5  # head: 0 1 .8 .6 .4 .2, backbone: half of 0 0 1/2 1 2/3 1/3
    assert trained(cfg).model.weights() == pytest.approx((-3.0, -2.5 / 2))
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert last["lr"] == pytest.approx(1 / 5)  # the higher one


@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_a_resumed_training_ends_with_the_same_bits(cfg: CfgNode, tmp_path: Path, done: int):
    cfg.SOLVER.BASE_LR, cfg.SOLVER.POLY_LR_POWER = 0.1, 0.9
    whole = trained(cfg).model.weights()
    (tmp_path / "last_checkpoint").write_text(f"model_{done - 1:07d}.pth")
    resumed = trained(cfg, resume=True)
    assert resumed.start_iter == done
    assert resumed.model.weights() == whole


@pytest.mark.parametrize(
    ("solver", "head", "backbone"),
    [
        ({"WARMUP_STAGES": (3, 1)}, 2 / 3 + 1 + 2 / 3 + 1 / 3, 0 + 0 + 1 + 1 / 2),
        ({"MAX_ITER": 5}, 3 / 4 + 2 / 4 + 1 / 4, 1 / 2 + 1 + 1 / 2),
        ({"LR_SCHEDULER_NAME": "WarmupPolyLR", "WARMUP_ITERS": 0}, 4 / 6 + 3 / 6 + 2 / 6 + 1 / 6, None),
    ],
)
def test_a_resumed_training_obeys_other_stages(
    cfg: CfgNode, tmp_path: Path, solver: dict[str, Any], head: float, backbone: float | None
):
    trained(cfg)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")  # after two steps, of 1 together
    cfg.SOLVER.BACKBONE_MULTIPLIER = cfg.SOLVER.BACKBONE_MULTIPLIER if backbone else 0.5  # two groups in any case
    cfg.merge_from_list([str(word) for key, value in solver.items() for word in (f"SOLVER.{key}", value)])
    expected = -1 - head, -(head / 2 if backbone is None else backbone)
    assert trained(cfg, resume=True).model.weights() == pytest.approx(expected)


def test_rates_of_a_small_eomt_are_the_released_ones_in_every_step():
    cfg = recipe_config("eomt/coco_panoptic_small_640.yaml", "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    groups = {parameter: index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
    places = [groups[model.get_parameter(name)] for name in REFERENCE["vit_small"]["parameters"]]
    for scheduler.last_epoch, *expected in REFERENCE["vit_small"]["rows"]:
        rates = scheduler.get_lr()
        assert [rates[place] for place in places] == expected
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05}
    assert len(optimizer.param_groups) == 13  # one for each block, and one for all outside


def test_every_parameter_of_a_backbone_waits_and_no_other():
    model = TwoWeights(load_config("", []))
    options = ["SOLVER.LR_SCHEDULER_NAME", "TwoStageWarmupPolyLR", "SOLVER.BACKBONE_MULTIPLIER", "1.0"]
    cfg = load_config("", [*options, "SOLVER.WARMUP_STAGES", "(10,10)"])
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert [rates[parameter] for parameter in (model.head.weight, model.backbone.weight)] == [cfg.SOLVER.BASE_LR, 0]
