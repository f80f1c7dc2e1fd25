"""What several processes cannot train is refused in a sentence, and trained by one."""

from __future__ import annotations

import pytest
from detectron2.modeling import build_model
from detectron2.utils import comm
from tiny_model import SHAPES_CONFIG, TINY
from torch import nn

from maskformer.config import load_config
from maskformer.engine.processes import check_for_several_processes
from maskformer.structures import InputError


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (["MODEL.RESNETS.NORM", "SyncBN"], "MODEL.RESNETS.NORM to naiveSyncBN"),
        (["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet18", "MODEL.TIMM.NORM", "SyncBN"],
         "MODEL.TIMM.NORM to '' or FrozenBN"),
    ],
)  # fmt: skip
def test_synchronised_norms_are_refused_on_cpus(options: list[str], change: str, monkeypatch: pytest.MonkeyPatch):
    cfg = load_config("", options)
    cfg.MODEL.DEVICE = "cpu"
    model = nn.ModuleDict({"layer": nn.SyncBatchNorm(2)})
    check_for_several_processes(cfg, model)  # one process needs no synchronisation
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(InputError) as caught:
        check_for_several_processes(cfg, model)
    assert change in str(caught.value) and "layer" in str(caught.value)
    cfg.MODEL.DEVICE = "cuda"
    check_for_several_processes(cfg, model)


@pytest.mark.parametrize(
    ("features", "change"), [("res2 res3 res4 res5", "['res2', 'res3', 'res4']"), ("res2 res3 res4", "")]
)
def test_features_that_nothing_reads_are_refused(features: str, change: str, monkeypatch: pytest.MonkeyPatch):
    options = {**TINY, "MODEL.RESNETS.OUT_FEATURES": str(features.split())}
    cfg = load_config(SHAPES_CONFIG, [str(word) for pair in options.items() for word in pair])
    model = build_model(cfg)
    check_for_several_processes(cfg, model)  # one process trains it
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    if not change:
        check_for_several_processes(cfg, model)
        return
    with pytest.raises(InputError) as caught:
        check_for_several_processes(cfg, model)
    assert "MODEL.RESNETS.OUT_FEATURES" in str(caught.value) and change in str(caught.value)
    model.backbone.requires_grad_(False)
    check_for_several_processes(cfg, model)  # no parameter waits for a gradient
