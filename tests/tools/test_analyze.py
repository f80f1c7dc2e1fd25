from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from maskformer.config import load_config
from maskformer.tools.analyze import Cost, analyze, format_table, main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@META_ARCH_REGISTRY.register()
class TwoParts(nn.Module):
    """A convolution of 3 to 4 channels with a kernel of 3, then a linear map of 4 to 5."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sigmoid())
        self.sem_seg_head = nn.Sequential(nn.Flatten(2), Transposed(), nn.Linear(4, 5))


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mT


def test_counts_are_those_worked_by_hand():
    costs = analyze(load_config("", ["MODEL.META_ARCHITECTURE", "TwoParts"]), (8, 10), depth=1)
    pixels = 8 * 10
    backbone = Cost(
        "backbone", 3 * 4 * 9 + 4, 3 * 4 * 9 * pixels, 4 * (3 + 4) * pixels
    )  # its input, the sigmoid's output
    assert costs[1] == backbone
    assert (costs[2].name, costs[2].parameters, costs[2].multiply_adds) == ("sem_seg_head", 25, 20 * pixels)
    assert costs[0].parameters == backbone.parameters + 25
    assert costs[0].multiply_adds == backbone.multiply_adds + 20 * pixels
    assert costs[0].saved_bytes == backbone.saved_bytes + costs[2].saved_bytes


def test_work_counts_for_the_module_that_does_it_whoever_calls_it():
    """The head calls the pixel decoder's last convolution, and multiplies 100 masks of 16 x 16 out of 256 channels."""
    cfg = load_config(str(CONFIGS / "ade20k-150" / "maskformer_R50_bs16_160k.yaml"))
    work = {cost.name.replace("sem_seg_head.", "."): cost.multiply_adds for cost in analyze(cfg, (64, 64), depth=3)}
    assert work[".pixel_decoder.mask_features"] == 256 * 256 * 9 * 16 * 16
    assert work[".pixel_decoder"] > work[".pixel_decoder.mask_features"] + work[".pixel_decoder.layer_4"]
    assert work[""] - work["backbone"] == work[".pixel_decoder"] + work[".predictor"] + 100 * 256 * 16 * 16


def test_samples_of_deformable_attention_are_counted():
    """Of 96 x 96: 6 x 6 and 12 x 12 cells look at 2 levels x 4 points of 64 channels, each sample of 4 values."""
    cfg = load_config(str(CONFIGS / "shapes" / "mask2former_panoptic.yaml"))
    work = {cost.name: cost for cost in analyze(cfg, (96, 96), depth=7)}
    attention = work["sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn"]
    cells = 6 * 6 + 12 * 12
    linear = cells * sum(64 * width for width in (2 * 64, 64, 64, 64))  # offsets, weights, values, output
    assert attention.multiply_adds == linear + cells * 2 * 4 * 64 * 4


def test_table_has_a_row_for_each_module():
    rows = format_table([Cost("", 41_250_000, 50_760_000_000, 2**20), Cost("backbone", 0, 0, 0)]).splitlines()
    assert rows[0].split() == ["module", "parameters", "multiply-adds", "kept", "for", "backward"]
    assert rows[1].split() == ["all", "41.25", "M", "50.76", "G", "1.0", "MB"]
    assert rows[2].split()[0] == "backbone"


def test_command_prints_the_parts_of_a_recipe(capsys: pytest.CaptureFixture):
    file = str(CONFIGS / "ade20k-150" / "maskformer_R50_bs16_160k.yaml")
    assert main(["--config-file", file, "--size", "64", "64", "--depth", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{file}, one image of 64 x 64"
    assert [line.split()[0] for line in lines[2:]] == ["all", "backbone", "sem_seg_head"]
    assert lines[2].split()[1] == "41.25"


def test_missing_configuration_is_one_line(capsys: pytest.CaptureFixture):
    assert main(["--config-file", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: Configuration file nowhere.yaml cannot be read")
