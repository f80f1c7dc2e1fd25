"""Mask annealing: the released probabilities, at each step of a training, in its checkpoints and when resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from reference_cases import REFERENCE2

from maskformer.config import load_config
from maskformer.engine import trainer as trainer_module
from maskformer.engine.hooks.annealing import masking_probabilities
from maskformer.engine.trainer import Trainer

RECIPES = json.loads((REFERENCE2 / "eomt" / "schedules.json").read_text())["annealing"]
EOMT = {
    "MODEL.META_ARCHITECTURE": "EoMT",
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 3,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 8,
    "MODEL.EOMT.IMAGE_SIZE": 16,
    "MODEL.EOMT.PATCH_SIZE": 8,
    "MODEL.EOMT.EMBED_DIM": 8,
    "MODEL.EOMT.DEPTH": 3,
    "MODEL.EOMT.NUM_HEADS": 2,
    "MODEL.EOMT.NUM_BLOCKS": 2,
    "MODEL.EOMT.ANNEALING_STARTS": [0, 2],
    "MODEL.EOMT.ANNEALING_ENDS": [2, 4],
    "DATASETS.TRAIN": "()",
    "DATASETS.TEST": "()",
    "SOLVER.MAX_ITER": 5,
    "SOLVER.LR_SCHEDULER_NAME": "TwoStageWarmupPolyLR",
    "SOLVER.WARMUP_STAGES": (1, 1),
    "SOLVER.LAYER_DECAY": 0.8,
    "SOLVER.CHECKPOINT_PERIOD": 1,
}
HALF = np.float32(0.5**0.9).item()
EACH_STEP = [[1.0, 1.0], [HALF, 1.0], [0.0, 1.0], [0.0, HALF], [0.0, 0.0]]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe['starts']}-{recipe['ends'][-1]}")
def test_probabilities_are_the_released_recipes_to_the_last_bit(recipe: dict[str, Any]):
    for iteration, expected in recipe["rows"]:
        assert masking_probabilities(iteration, recipe["starts"], recipe["ends"]) == expected


def example() -> dict[str, Any]:
    instances = Instances((16, 16))
    instances.gt_classes, instances.gt_masks = torch.tensor([1]), torch.rand(1, 16, 16) > 0.5
    return {"image": torch.randint(256, (3, 16, 16), dtype=torch.uint8), "instances": instances}


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setattr(trainer_module, "build_train_loader", lambda cfg: iter(lambda: [example()], None))
    options = {**EOMT, "OUTPUT_DIR": str(tmp_path)}
    return load_config("", [str(word) for pair in options.items() for word in pair])


def trained(cfg: CfgNode, *, resume: bool = False) -> list[list[float]]:
    """Train; the probabilities with which each step is made."""
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    steps: list[list[float]] = []
    network = trainer.checkpointer.model.network
    trainer.model.register_forward_pre_hook(lambda *_: steps.append(network.attn_mask_probs.tolist()))
    trainer.train()
    return steps


def saved_after(step: int, folder: Path) -> list[float]:
    content = torch.load(folder / f"model_{step:07d}.pth", weights_only=True)
    return content["model"]["network.attn_mask_probs"].tolist()


def test_each_step_has_its_probabilities_and_each_checkpoint_those_of_the_next(cfg: CfgNode, tmp_path: Path):
    assert trained(cfg) == EACH_STEP
    assert [saved_after(step, tmp_path) for step in range(4)] == EACH_STEP[1:]
    last = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert last["network.attn_mask_probs"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("done", [1, 3])
def test_a_resumed_training_goes_on_with_its_probabilities_to_the_same_weights(cfg: CfgNode, tmp_path: Path, done: int):
    trained(cfg)
    whole = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    (tmp_path / "last_checkpoint").write_text(f"model_{done - 1:07d}.pth")
    assert trained(cfg, resume=True) == EACH_STEP[done:]
    resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_without_annealing_queries_are_always_masked_whatever_the_weights_were_trained_with(
    cfg: CfgNode, tmp_path: Path
):
    trained(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")  # with zeros
    cfg.merge_from_list(["MODEL.EOMT.ANNEALING_STARTS", "[]", "MODEL.EOMT.ANNEALING_ENDS", "[]"])
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "second"), "SOLVER.MAX_ITER", "3"])
    assert trained(cfg) == [[1.0, 1.0]] * 3
    assert saved_after(0, tmp_path / "second") == [1.0, 1.0]


def test_an_annealing_that_the_training_does_not_reach_is_told(cfg: CfgNode, caplog: pytest.LogCaptureFixture):
    trained(cfg)
    assert "ANNEALING_ENDS" not in caplog.text
    cfg.SOLVER.MAX_ITER = 3
    trained(cfg)
    (message,) = (message for message in caplog.messages if "ANNEALING_ENDS" in message)
    assert "iteration 4" in message and "3 (SOLVER.MAX_ITER)" in message
