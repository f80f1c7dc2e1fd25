from __future__ import annotations

import logging

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn

from maskformer.config import load_config
from maskformer.engine.accelerator import Accelerator
from maskformer.engine.optimizer import clip_full_model
from maskformer.engine.step import StepTrainer, build_step_trainer, split_batch
from maskformer.structures import InputError, SegmentMasks

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": "['res2','res3','res4','res5']",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "8",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "4",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "2",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res2','res3','res4','res5']",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "3",
    "MODEL.SEM_SEG_HEAD.NORM": "",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "8",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "8",
    "MODEL.MASK_FORMER.HIDDEN_DIM": "8",
    "MODEL.MASK_FORMER.NHEADS": "2",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": "16",
    "MODEL.MASK_FORMER.DEC_LAYERS": "2",
    "MODEL.MASK_FORMER.DROPOUT": "0.0",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "6",
}


POINTS = {"MODEL.MASK_FORMER.MASK_LOSS": "points", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "30"}


def tiny_model(**options: str) -> nn.Module:
    torch.manual_seed(3)
    return build_model(load_config("", [word for pair in {**TINY, **options}.items() for word in pair])).train()


def example(seed: int, num_segments: int) -> dict:
    """An image of random pixels whose columns belong to the segments in turn."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((64, 64))
    instances.gt_classes = torch.arange(num_segments) % 3
    columns = torch.arange(64) % (num_segments + 1)
    instances.gt_masks = SegmentMasks(columns.expand(64, 64).to(torch.uint8).contiguous(), num_segments)
    return {"image": torch.randint(0, 256, (3, 64, 64), generator=generator).float(), "instances": instances}


BATCH = [example(0, 1), example(1, 2), example(2, 5), example(3, 4)]  # two images with 3 masks, two with 9
MASKS = [3, 9]


def definition(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of the mean over parts, each part's mask losses over the mean number of masks, worked out by hand."""
    total = torch.zeros(())
    for part, masks in zip((BATCH[:2], BATCH[2:]), MASKS):
        for name, loss in model(part).items():
            own_share = 1.0 if name.startswith("loss_ce") else masks / (sum(MASKS) / 2)
            total = total + loss * own_share / 2
    model.zero_grad()
    total.backward()
    return gradients(model) | {"total": total.detach()}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def stepped(trainer: StepTrainer, iterations: int = 1) -> EventStorage:
    with EventStorage(0) as storage:
        for trainer.iter in range(iterations):
            storage.iter = trainer.iter
            trainer.run_step()
    return storage


def step_trainer(model: nn.Module, batch: list, **options) -> StepTrainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.0))
    if "clip" in options:
        clip_full_model(optimizer, max_norm=options.pop("clip"))
    return StepTrainer(model, iter(lambda: batch, None), optimizer, accelerator=Accelerator("cpu"), **options)


@pytest.mark.parametrize("options", [{}, POINTS], ids=["dense", "points, which each part draws"])
def test_accumulated_parts_have_the_gradient_of_as_many_processes(options: dict[str, str]):
    expected = definition(tiny_model(**options))
    model = tiny_model(**options)
    storage = stepped(step_trainer(model, BATCH, accumulation_steps=2))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)
    assert storage.latest()["total_loss"][0] == pytest.approx(expected["total"].item(), rel=1e-6)


def test_one_part_is_the_plain_step():
    model, plain = tiny_model(), tiny_model()
    sum(plain(BATCH).values()).backward()
    stepped(step_trainer(model, BATCH))
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(model)[name], gradient)


def test_batch_that_cannot_be_divided_is_refused():
    assert split_batch([{"a": 1}, {"a": 2}], 2) == [[{"a": 1}], [{"a": 2}]]
    with pytest.raises(InputError, match=r"SOLVER.ACCUMULATION_STEPS is 3, but a process has 4 images a step"):
        split_batch(BATCH, 3)


class Line(nn.Module):
    """A finite loss of one weight, whose gradient is the next of the given slopes."""

    def __init__(self, *slopes: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.slopes = iter(slopes)

    def forward(self, _: list) -> dict[str, torch.Tensor]:
        slope = next(self.slopes)
        passed = self.weight * 1.0
        passed.register_hook(lambda gradient: gradient * slope)
        return {"loss": passed.sum()}


def test_overflow_skips_the_step_and_is_counted_and_logged(caplog: pytest.LogCaptureFixture):
    model = Line(float("inf"), 1.0)
    trainer = step_trainer(model, [{}], lr=1.0, half_precision=torch.float16)
    with caplog.at_level(logging.INFO, logger="maskformer.engine.step"):
        storage = stepped(trainer, 2)
    assert model.weight.item() == pytest.approx(-1.0)  # the second step alone
    assert trainer.skipped_steps == 1
    assert "Iteration 0: float16 gradients overflowed; the step is skipped (1 so far)" in caplog.text
    assert storage.latest()["skipped_steps"][0] == 1
    assert storage.latest()["grad_scaler"] == (2.0**15, 0)


def test_gradients_are_unscaled_before_they_are_clipped():
    model = Line(3.0)
    stepped(step_trainer(model, [{}], lr=1.0, clip=1.0, half_precision=torch.float16))
    assert model.weight.item() == pytest.approx(-1.0, abs=1e-5)  # clipped to 1, not 3 / 65536 or 65536 times too long


def test_bfloat16_needs_no_scaler():
    trainer = step_trainer(Line(1.0), [{}], lr=1.0, half_precision=torch.bfloat16)
    assert not trainer.scaler.is_enabled()
    storage = stepped(trainer)
    assert "grad_scaler" not in storage.latest()
    assert "grad_scaler" not in trainer.state_dict()


@pytest.mark.parametrize("half_precision", [torch.float16, torch.bfloat16])
def test_half_precision_loss_is_close_to_float32(half_precision: torch.dtype):
    losses = [
        stepped(step_trainer(tiny_model(), BATCH, half_precision=precision)).latest()["total_loss"][0]
        for precision in (None, half_precision)
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_scaler_is_saved_and_taken_up_again():
    trainer = step_trainer(Line(1.0), [{}], half_precision=torch.float16)
    stepped(trainer)
    trainer.scaler.update(new_scale=128.0)
    trainer.skipped_steps = 3
    other = step_trainer(Line(1.0), [{}], half_precision=torch.float16)
    other.load_state_dict(trainer.state_dict())
    assert other.scaler.get_scale() == 128.0
    assert other.skipped_steps == 3


def test_run_without_scaler_is_taken_up_with_one():
    state = step_trainer(Line(1.0), [{}]).state_dict()
    step_trainer(Line(1.0), [{}], half_precision=torch.float16).load_state_dict(state)


def solver_config(*words: str):
    return load_config("", ["MODEL.DEVICE", "cpu", *words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["SOLVER.AMP.PRECISION", "float16"], None),  # AMP is off
        (["SOLVER.AMP.ENABLED", "True"], torch.bfloat16),
        (["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "float16"], torch.float16),
    ],
)
def test_precision_follows_the_keys(words: list[str], expected: torch.dtype | None):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert build_step_trainer(solver_config(*words), model, [], optimizer).half_precision == expected


def test_no_parts_are_refused():
    with pytest.raises(InputError, match=r"SOLVER.ACCUMULATION_STEPS is 0, expected 1 or more"):
        build_step_trainer(solver_config("SOLVER.ACCUMULATION_STEPS", "0"), Line(), [], None)
