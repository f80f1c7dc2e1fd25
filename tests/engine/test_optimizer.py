from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from reference_cases import REFERENCE2, read_lists, recipe_config
from torch import nn

from maskformer.config import load_config
from maskformer.engine.optimizer import build_optimizer, clip_full_model, find_blocks
from maskformer.modeling.backbones.vit import VisionTransformer
from maskformer.structures import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = {
    "maskformer_R50_ade": "ade20k-150/maskformer_R50_bs16_160k.yaml",
    "maskformer_panoptic_R50_coco": "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml",
    "maskformer_swin_tiny_ade": "ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml",
}


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.backbone.register_parameter("relative_position_bias_table", nn.Parameter(torch.ones(2)))
        self.head = nn.Linear(2, 2)
        self.norm = nn.GroupNorm(1, 2)
        self.query_embed = nn.Embedding(2, 2)
        self.backbone_head = nn.Linear(2, 2)  # a name that only begins like the backbone's
        self.shared = self.head
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def config(**solver: object) -> CfgNode:
    options = {"BASE_LR": 0.1, "BACKBONE_MULTIPLIER": 0.5, "WEIGHT_DECAY": 0.3, **solver}
    return load_config("", [str(word) for key, value in options.items() for word in (f"SOLVER.{key}", value)])


def hyperparameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_each_kind_of_parameter_has_its_rate_and_decay():
    model = Toy()
    optimizer = build_optimizer(config(WEIGHT_DECAY_NORM=0.01, WEIGHT_DECAY_EMBED=0.02), model)
    backbone = {"0.weight": (0.05, 0.3), "0.bias": (0.05, 0.3), "1.weight": (0.05, 0.01), "1.bias": (0.05, 0.01)}
    assert hyperparameters(optimizer, model) == {
        **{f"backbone.{name}": values for name, values in backbone.items()},
        "backbone.relative_position_bias_table": (0.05, 0.0),
        "head.weight": (0.1, 0.3),
        "head.bias": (0.1, 0.3),
        "norm.weight": (0.1, 0.01),
        "norm.bias": (0.1, 0.01),
        "query_embed.weight": (0.1, 0.02),
        "backbone_head.weight": (0.1, 0.3),
        "backbone_head.bias": (0.1, 0.3),
    }


def test_parameters_of_equal_hyperparameters_share_a_group():
    optimizer = build_optimizer(config(), Toy())
    seen = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert sorted(seen) == [(0.05, 0.0), (0.05, 0.3), (0.1, 0.0), (0.1, 0.3)]


@pytest.mark.parametrize("reference", RECIPES)
def test_groups_of_released_recipe_are_reproduced(reference: str):
    path = REPOSITORY / "tests/reference/optimizer_groups" / f"{reference}.json"
    assert_groups(RECIPES[reference], json.loads(path.read_text()))


@pytest.mark.parametrize("recipe", read_lists("optimizer_groups"))
def test_groups_of_released_mask2former_recipe_are_reproduced(recipe: str):
    assert_groups(f"mask2former/{recipe}", read_lists("optimizer_groups")[recipe])


def assert_groups(recipe: str, expected: list[list[Any]]) -> None:
    """Name, rate and decay of every parameter that is trained."""
    cfg = recipe_config(recipe, "MODEL.DEVICE", "meta")
    with torch.device("meta"):  # shapes without memory
        model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    actual = hyperparameters(optimizer, model)
    assert actual.keys() == {name for name, *_ in expected}
    for name, *values in expected:
        assert actual[name] == pytest.approx(values, rel=1e-12), name
    assert len(optimizer.param_groups) == len({(lr, decay) for _, lr, decay in expected})
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("spared", ["0", "4"])
def test_blocks_of_a_large_vision_transformer_learn_as_the_released_ones(spared: str):
    backbone = VisionTransformer(image_size=(32, 32), dim=8, depth=24, num_heads=2)
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)})
    cfg = config(BASE_LR=1e-4, BACKBONE_MULTIPLIER=1.0, LAYER_DECAY=0.8, LAYER_DECAY_SPARED=spared)
    released = json.loads((REFERENCE2 / "eomt" / "schedules.json").read_text())["vit_large_blocks"][spared]
    for name, (lr, _) in hyperparameters(build_optimizer(cfg, model), model).items():
        if name.startswith("backbone.blocks."):
            assert lr == released[int(name.split(".")[2])]
        else:
            assert lr == (1e-4 if "norm" in name or "head" in name else released[0]), name


def block_rates(backbone: nn.Module, layers: str, **solver: object) -> list[float]:
    """How often the rates of layers are halved."""
    model = nn.ModuleDict({"backbone": backbone})
    options = {"BASE_LR": 1.0, "BACKBONE_MULTIPLIER": 1.0, "LAYER_DECAY": 0.5, **solver}
    rates = hyperparameters(build_optimizer(config(**options), model), model)
    return [-math.log2(rates[f"backbone.{layer}.weight"][0]) for layer in layers.split()]


def named_backbone(name: str, *options: str) -> nn.Module:
    resnet = ("MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']", "MODEL.BACKBONE.FREEZE_AT", "0")
    cfg = load_config("", ["MODEL.DEVICE", "meta", "MODEL.BACKBONE.NAME", name, *resnet, *options])
    with torch.device("meta"):
        return build_backbone(cfg)


def test_layers_of_swin_are_its_blocks():
    layers = "patch_embed.proj layers.0.blocks.0.norm1 layers.0.blocks.1.mlp.fc1 layers.0.downsample.reduction"
    layers += " layers.1.blocks.0.attn.qkv layers.3.blocks.1.norm1 norm0 norm3"
    assert block_rates(named_backbone("D2SwinTransformer"), layers) == [11, 11, 10, 10, 9, 0, 0, 0]


def test_layers_of_a_resnet_are_its_blocks_whatever_stands_on_it():
    layers, expected = "stem.conv1 res2.0.conv1 res2.1.conv2 res3.0.shortcut res5.2.conv3", [15, 15, 14, 12, 0]
    assert block_rates(named_backbone("build_resnet_backbone"), layers) == expected
    frozen = named_backbone("build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", "2")
    assert block_rates(frozen, "res3.0.shortcut res5.2.conv3") == [12, 0]  # what does not learn counts nevertheless
    deeplab = named_backbone("build_resnet_deeplab_backbone", "MODEL.RESNETS.STEM_TYPE", "deeplab")
    assert block_rates(deeplab, f"{layers} stem.conv3") == [*expected, 15]
    features = "['res2', 'res3', 'res4', 'res5']"
    pyramid = named_backbone("build_resnet_fpn_backbone", "MODEL.FPN.IN_FEATURES", features)
    below = " ".join(f"bottom_up.{layer}" for layer in layers.split())
    assert block_rates(pyramid, f"{below} fpn_lateral2 fpn_output5") == [*expected, 0, 0]


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("convnext_tiny", 18, "stages_0.blocks.0", "stages_3.blocks.2"),
        ("resnet18", 8, "layer1.0", "layer4.1"),
        ("tf_efficientnet_lite0", 16, "blocks.0.0", "blocks.6.0"),
        ("ghostnet_100", 12, "blocks_0.0", "blocks_7.0"),  # whose blocks have two like parts
        ("regnety_004", 16, "s1", "s4.b6"),  # the one block of a stage is the stage
        ("vit_tiny_patch16_224", 12, "model.blocks.0", "model.blocks.11"),
        ("swin_tiny_patch4_window7_224", 12, "layers_0.blocks.0", "layers_3.blocks.1"),
        ("densenet121", 58, "features_denseblock1.denselayer1", "features_denseblock4.denselayer16"),
        ("vgg11_bn", 8, "features_0", "features_25"),  # no blocks: its layers
    ],
)
def test_blocks_of_timm_models_are_found(name: str, count: int, first: str, last: str):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = timm.create_model(name, features_only=True)
    names = {module: name for name, module in backbone.named_modules()}
    found = [names[block] for block in find_blocks(backbone)]
    assert (len(found), found[0], found[-1]) == (count, first, last)


def test_multiplier_and_layer_decay_multiply():
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert block_rates(layers, "0 2", BACKBONE_MULTIPLIER=0.25) == [3, 2]


def test_more_spared_blocks_than_there_are_are_refused_with_their_number():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert block_rates(layers, "0 1 2", LAYER_DECAY_SPARED=2) == [2, 0, 0]
    with pytest.raises(InputError, match=r"SOLVER.LAYER_DECAY_SPARED is 3, .*Sequential, has 3 blocks"):
        block_rates(layers, "0", LAYER_DECAY_SPARED=3)


def test_checkpoint_of_other_decayed_layers_is_refused_and_of_another_decay_obeyed():
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))})
    state = build_optimizer(config(LAYER_DECAY=0.5, BACKBONE_MULTIPLIER=1.0), model).state_dict()
    other = build_optimizer(config(LAYER_DECAY=0.1, BACKBONE_MULTIPLIER=1.0), model)
    other.load_state_dict(state)
    assert [group["lr"] for group in other.param_groups] == pytest.approx([0.001, 0.01, 0.1])
    with pytest.raises(InputError, match=r"LAYER_DECAY, LAYER_DECAY_SPARED"):
        build_optimizer(config(LAYER_DECAY=0.5, LAYER_DECAY_SPARED=2), model).load_state_dict(state)


def test_fused_update_is_the_plain_one():
    model = Toy().double()
    twin = copy.deepcopy(model)
    fused, plain = build_optimizer(config(), model), build_optimizer(config(), twin)
    for group in plain.param_groups:
        group["fused"] = False
    assert all(group["fused"] for group in fused.param_groups)
    for _ in range(3):
        for parameter, other in zip(model.parameters(), twin.parameters()):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        fused.step()
        plain.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-14)


def test_checkpoint_of_another_device_does_not_change_how_the_update_is_made():
    optimizer = build_optimizer(config(), Toy())
    step_with_gradients_of_ones(optimizer)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = None
    optimizer.load_state_dict(state)
    assert all(group["fused"] for group in optimizer.param_groups)
    step_with_gradients_of_ones(optimizer)


def test_checkpoint_brings_moments_but_no_hyperparameters():
    before, after = build_optimizer(config(), Toy()), build_optimizer(config(WEIGHT_DECAY=0.5, BASE_LR=0.2), Toy())
    step_with_gradients_of_ones(before)
    after.load_state_dict(before.state_dict())
    assert sorted((group["lr"], group["weight_decay"]) for group in after.param_groups) == [
        (0.1, 0.0), (0.1, 0.5), (0.2, 0.0), (0.2, 0.5)
    ]  # fmt: skip
    assert all(after.state[parameter]["step"] == 1 for group in after.param_groups for parameter in group["params"])


def test_checkpoint_of_other_groups_is_refused_by_the_keys_that_make_them():
    with pytest.raises(InputError, match=r"BACKBONE_MULTIPLIER, WEIGHT_DECAY.*FREEZE_AT"):
        build_optimizer(config(WEIGHT_DECAY=0.0), Toy()).load_state_dict(build_optimizer(config(), Toy()).state_dict())


def step_with_gradients_of_ones(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def step_with_gradients(optimizer: torch.optim.Optimizer, *gradients: float) -> list[float]:
    """Moves of one-element parameters that start at 0."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return [parameter.item() for parameter in parameters]


def two_scalars() -> nn.Module:
    return nn.ParameterList([torch.zeros(1), torch.zeros(1)])


@pytest.mark.parametrize(
    ("clip_type", "clip_value", "expected"),
    [
        ("full_model", 1.0, [-0.6, -0.8]),  # the norm over both is 5
        ("full_model", 10.0, [-3.0, -4.0]),
        ("norm", 1.0, [-1.0, -1.0]),  # each by itself
        ("value", 3.5, [-3.0, -3.5]),
    ],
)
def test_gradients_are_clipped_before_the_step(clip_type: str, clip_value: float, expected: list[float]):
    clipping = {"ENABLED": True, "CLIP_TYPE": clip_type, "CLIP_VALUE": clip_value}
    options = {f"CLIP_GRADIENTS.{key}": value for key, value in clipping.items()}
    sgd = {"OPTIMIZER": "SGD", "BASE_LR": 1.0, "WEIGHT_DECAY": 0.0}
    optimizer = build_optimizer(config(**sgd, **options), two_scalars())
    assert step_with_gradients(optimizer, 3.0, 4.0) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_left_alone_when_clipping_is_off():
    cfg = config(OPTIMIZER="SGD", BASE_LR=1.0, WEIGHT_DECAY=0.0, **{"CLIP_GRADIENTS.CLIP_TYPE": "full_model"})
    assert step_with_gradients(build_optimizer(cfg, two_scalars()), 3.0, 4.0) == [-3.0, -4.0]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("max_norm", [0.5, 50.0])
def test_clipped_update_is_that_of_clipped_gradients(max_norm: float, fused: bool):
    clipping = {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_VALUE": max_norm}
    model = Toy()
    twin = copy.deepcopy(model)
    optimizer = build_optimizer(config(**clipping, **{"CLIP_GRADIENTS.CLIP_TYPE": "full_model"}), model)
    plain = build_optimizer(config(), twin)
    for group in optimizer.param_groups:
        group["fused"] = fused
    for _ in range(3):
        for parameter, other in zip(model.parameters(), twin.parameters()):
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
            other.grad = copy.deepcopy(parameter.grad)
        optimizer.step()
        nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
        plain.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-7)


def test_loss_scaler_unscales_before_full_model_clipping():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    clip_full_model(optimizer, max_norm=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((0.5 * parameter).sum()).backward()
    scaler.step(optimizer)
    assert parameter.item() == -0.5  # unscaled, 0.5 needs no clipping


def test_momentum_of_sgd_is_the_configured_one():
    optimizer = build_optimizer(config(OPTIMIZER="SGD", MOMENTUM=0.7), Toy())
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


def test_unknown_optimizer_lists_the_known_ones():
    with pytest.raises(InputError, match=r"SOLVER.OPTIMIZER is 'LION', expected one of ADAMW, SGD"):
        build_optimizer(config(OPTIMIZER="LION"), Toy())


def test_unknown_clipping_lists_the_known_ones():
    clipping = {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_TYPE": "agc"}
    with pytest.raises(InputError, match=r"CLIP_TYPE is 'agc', expected .*full_model"):
        build_optimizer(config(**clipping), Toy())


@pytest.mark.parametrize(
    ("rule", "batch_size", "expected"),
    [("none", 4, 0.1), ("linear", 4, 0.025), ("linear", 32, 0.2), ("sqrt", 4, 0.05), ("sqrt", 16, 0.1)],
)
def test_learning_rate_follows_the_batch_by_the_rule_that_is_asked_for(rule: str, batch_size: int, expected: float):
    cfg = config(LR_SCALING=rule, IMS_PER_BATCH=batch_size)
    optimizer = build_optimizer(cfg, Toy())
    assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(expected)


def test_scaled_learning_rate_is_logged_and_an_unscaled_one_is_not(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="maskformer.engine.optimizer"):
        build_optimizer(config(), Toy())
        assert not caplog.records
        build_optimizer(config(LR_SCALING="sqrt", IMS_PER_BATCH=4), Toy())
    assert caplog.messages == [
        "Learning rate 0.1, chosen for 16 images a step, becomes 0.05 for 4 (SOLVER.LR_SCALING is sqrt)"
    ]


def test_unknown_rule_and_missing_reference_are_refused():
    with pytest.raises(InputError, match=r"SOLVER.LR_SCALING is 'root', expected one of"):
        build_optimizer(config(LR_SCALING="root"), Toy())
    with pytest.raises(InputError, match=r"SOLVER.LR_REFERENCE_BATCH is 0, expected 1 or more"):
        build_optimizer(config(LR_SCALING="linear", LR_REFERENCE_BATCH=0), Toy())
