"""The network as MODEL.COMPILE and MODEL.PRECISION have it run."""

from __future__ import annotations

import copy
import functools
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from tiny_model import (
    EOMT_CONFIG,
    MASK2FORMER_CONFIG,
    REPOSITORY,
    SHAPES_CONFIG,
    TINY,
    TINY_EOMT,
    TINY_MASK2FORMER,
)
from torch import nn

from maskformer.config import load_config
from maskformer.engine import network
from maskformer.engine.network import run_as_configured
from maskformer.engine.non_finite import find_origin
from maskformer.structures import InputError

PER_PIXEL = {key: value for key, value in TINY.items() if "TEST" not in key and "QUERIES" not in key}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MaskFormer": (SHAPES_CONFIG, TINY),
    "Mask2Former": (MASK2FORMER_CONFIG, TINY_MASK2FORMER),
    "EoMT": (EOMT_CONFIG, TINY_EOMT),
    "per pixel": (str(REPOSITORY / "configs/ade20k-150/per_pixel_baseline_plus_R50_bs16_160k.yaml"), PER_PIXEL),
}
SWIN = {
    **{key: value for key, value in TINY.items() if "RESNETS" not in key and "TEST" not in key},
    "MODEL.SWIN.EMBED_DIM": 12,
    "MODEL.SWIN.DEPTHS": "(2, 1, 1, 1)",
    "MODEL.SWIN.NUM_HEADS": "(1, 2, 2, 2)",
}
SWIN_CONFIG = str(REPOSITORY / "configs/ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml")
SIZES = [(64, 96), (96, 64), (64, 96), (128, 160)]


def build(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A model as it comes, and a copy of it that runs as the keys say."""
    file, tiny = {**MODELS, "Swin": (SWIN_CONFIG, SWIN)}[name]
    keys = {**tiny, **{key.replace("__", "."): value for key, value in options.items()}}
    cfg = load_config(file, [str(word) for pair in keys.items() for word in pair])
    torch.manual_seed(0)
    plain = build_model(cfg)
    model = copy.deepcopy(plain)
    run_as_configured(cfg, model)
    return plain, model


def example(size: tuple[int, int], *, targets: bool = False) -> dict[str, Any]:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size[0]))
    if not targets:
        return {"image": image}
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, : size[0] // 2], masks[1, size[0] // 2 :] = True, True
    return {"image": image, "instances": Instances(size, gt_classes=torch.tensor([0, 1]), gt_masks=BitMasks(masks))}


@torch.no_grad()
def results(model: nn.Module, size: tuple[int, int]) -> list[torch.Tensor]:
    examples = [example(size)]
    if not hasattr(model, "predict"):
        return [model.eval()(examples)[0]["sem_seg"]]
    return list(model.eval().predict(examples)[0][:2])


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Graphs that were captured are counted, and run as they are: what a compiler makes of them is not of interest."""
    captured: list[int] = []

    def keep(graph: torch.fx.GraphModule, _: Any, **__: Any) -> Any:
        captured.append(len(graph.graph.nodes))
        return graph.forward

    compile_graph = torch.compile

    @functools.wraps(compile_graph)
    def capture(*args: Any, mode: str, **options: Any) -> Any:
        return compile_graph(*args, backend=keep, **options)

    monkeypatch.setattr(torch, "compile", capture)
    torch.compiler.reset()
    yield captured
    torch.compiler.reset()


def test_nothing_is_put_in_place_by_default():
    plain, model = build("MaskFormer")
    assert model.__dict__.keys() == plain.__dict__.keys()


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_is_close_and_comes_as_float32(name: str):
    plain, model = build(name, MODEL__PRECISION="bfloat16")
    for actual, expected in zip(results(model, (64, 96)), results(plain, (64, 96))):
        assert actual.dtype == torch.float32
        assert not torch.equal(actual, expected)
        assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_training_is_not_in_the_precision_of_prediction():
    examples = [example((64, 96), targets=True)]
    losses = []
    for model in build("EoMT", MODEL__PRECISION="bfloat16"):
        torch.manual_seed(0)
        losses.append(model.train()(examples))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


def test_a_device_that_does_not_compute_in_it_is_named_with_the_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network.Accelerator, "_computes_in", lambda _, dtype: dtype == torch.float16)
    with pytest.raises(InputError, match=r"MODEL\.PRECISION is 'bfloat16', which cpu .* set it to float16 or auto"):
        build("EoMT", MODEL__PRECISION="bfloat16")


def test_a_model_of_another_kind_is_refused():
    cfg = load_config(SHAPES_CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.COMPILE", "default"])
    with pytest.raises(InputError, match=r"MODEL\.COMPILE is 'default'.*META_ARCHITECTURE Linear"):
        run_as_configured(cfg, nn.Linear(1, 1))


@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_other_sizes_share_a_graph_once_there_are_many(
    mode: str, graphs: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(network.SIZES_OF_THEIR_OWN, "max-autotune", 2)
    plain, model = build("EoMT", MODEL__COMPILE=mode)
    with caplog.at_level(logging.INFO, "maskformer.engine.network"):
        for size in [*SIZES, (32, 160), (160, 96)]:
            for actual, expected in zip(results(model, size), results(plain, size)):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == network.SIZES_OF_THEIR_OWN[mode] + 1 == len(caplog.records)
    assert "1 x 3 x 64 x 96" in caplog.messages[0]


def test_sizes_of_shifted_windows_are_compiled_one_by_one_and_the_rest_is_said(
    graphs: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(network.SIZES_OF_THEIR_OWN, "max-autotune", 2)
    plain, model = build("Swin", MODEL__COMPILE="default")
    for size in [*SIZES, (32, 160)]:
        for actual, expected in zip(results(model, size), results(plain, size)):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 2
    (warning,) = [
        each.getMessage() for each in caplog.records if "network" in each.name and each.levelno > logging.INFO
    ]
    assert "for 2 sizes" in warning and "1 x 3 x 128 x 160" in warning


def test_what_is_compiled_can_be_copied_pickled_and_saved(graphs: list[int]):
    plain, model = build("EoMT", MODEL__COMPILE="default")
    expected = results(model, (64, 64))
    assert list(model.state_dict()) == list(plain.state_dict())
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        with torch.no_grad():
            other.network.class_head.bias.add_(1)  # its own, not the first model's
        assert not torch.equal(results(other, (64, 64))[0], expected[0])
        assert torch.equal(results(model, (64, 64))[0], expected[0])
    assert len(graphs) == 3


def test_more_forms_than_are_allowed_are_computed_step_by_step_and_that_is_said(
    graphs: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(network.SIZES_OF_THEIR_OWN, "default", 0)
    monkeypatch.setattr(network, "MOST_FORMS", 1)
    plain, model = build("EoMT", MODEL__COMPILE="default")
    for batch in (1, 2, 16, 32, 1):
        images = torch.randn(batch, 3, 64, 96)
        with torch.set_grad_enabled(batch == 16):
            actual, expected = model.eval().encode(images), plain.eval().encode(images)
        torch.testing.assert_close(tuple(actual), tuple(expected), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 2
    (warning,) = [
        each.getMessage() for each in caplog.records if "network" in each.name and each.levelno > logging.INFO
    ]
    assert "16 x 3 x 64 x 96" in warning


@pytest.mark.parametrize("name", ["MaskFormer", "EoMT"])
def test_a_compiled_step_has_the_losses_and_gradients_of_any_other(name: str, graphs: list[int]):
    options: dict[str, Any] = {"MODEL__MASK_FORMER__DROPOUT": 0.0}
    if name == "EoMT":  # no random numbers: whoever compiles draws others
        options = {"MODEL__MASK_FORMER__MASK_LOSS": "dense", "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 12544}
    examples = [example((64, 96), targets=True)]
    norms, losses = [], []
    for model in build(name, MODEL__COMPILE="default", **options):
        for _ in range(2):  # the second finds what the first has compiled
            model.train().zero_grad()
            torch.manual_seed(0)
            losses.append(model(examples))
            sum(losses[-1].values()).backward()
        norms.append({key: x.grad.norm() for key, x in model.named_parameters() if x.grad is not None})
    assert len(graphs) == 1
    torch.testing.assert_close(losses[3], losses[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-3, atol=1e-4)


def test_annealing_compiles_nothing_anew(graphs: list[int]):
    _, model = build("EoMT", MODEL__COMPILE="default")
    for probability in (1.0, 0.7, 0.5, 0.0):
        model.network.set_masking([probability] * model.network.num_blocks)
        model.train()([example((64, 96), targets=True)])
    assert len(graphs) == 1


def test_the_origin_of_a_number_that_is_not_finite_is_found_in_a_compiled_model(graphs: list[int]):
    _, model = build("EoMT", MODEL__COMPILE="default")
    examples = [example((64, 96), targets=True)]
    model.train()(examples)
    block = model.network.backbone.blocks[1].mlp.fc1
    with torch.no_grad():
        block.weight[0, 0] = torch.nan
    assert "network.encoder.backbone.blocks.1.mlp.fc1" in find_origin(model, lambda: model(examples))
    assert len(graphs) == 1


WITHOUT_COMPILER = """
import logging, sys, torch
sys.path.insert(0, {tests!r})
logging.basicConfig(level=logging.WARNING)
logging.getLogger("fvcore").setLevel(logging.ERROR)
from engine.test_network_part import build, example, results
plain, model = build("EoMT", MODEL__COMPILE="default")
assert torch.equal(results(model, (64, 64))[0], results(plain, (64, 64))[0])
losses = []
for each in (plain, model):
    torch.manual_seed(0)
    losses.append(each.train()([example((64, 64), targets=True)]))
assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])
"""


@pytest.mark.slow
def test_without_a_compiler_one_sentence_is_said_for_each_part_and_results_are_the_same(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "bin"), "CXX": "/nowhere/c++", "OMP_NUM_THREADS": "1"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    code = WITHOUT_COMPILER.format(tests=str(REPOSITORY / "tests"))
    command = [sys.executable, "-W", "ignore", "-c", code]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert process.returncode == 0, process.stderr[-3000:]
    said = [line for line in process.stderr.splitlines() if "MODEL.COMPILE" in line]
    assert len(said) == 2
    assert all("cpu" in line and "compiler" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_compiled_for_real_results_are_equal(name: str):
    plain, model = build(name, MODEL__COMPILE="default")
    for actual, expected in zip(results(model, (64, 96)), results(plain, (64, 96))):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
