"""The released models' numbers, reproduced: outputs, losses, matches, gradients and optimiser steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from reference_cases import (
    CASES,
    CASES2,
    EOMT_CASES,
    PER_PIXEL_CASES,
    REFERENCE,
    Case,
    build_case,
    by_released_names,
    case_folder,
    draw_weights,
    handed_out,
    make_example,
    read_case_json,
    read_json,
    read_lists,
    recipe_config,
    reference_config,
    unpacked,
)

from maskformer.engine.optimizer import build_optimizer

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

NOISE = {torch.float64: 1e-6, torch.float32: 1e-4}

# The released baselines compute this loss in float32 whatever the model's precision.
PER_PIXEL_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.fixture(
    scope="module",
    params=[(case, dtype) for case in (*CASES, *CASES2, *EOMT_CASES) for dtype in TOLERANCE],
    ids=str,
)
def case(request: pytest.FixtureRequest) -> Case:
    return build_case(*request.param)


@pytest.fixture(scope="module", params=[(case, dtype) for case in PER_PIXEL_CASES for dtype in TOLERANCE], ids=str)
def per_pixel_case(request: pytest.FixtureRequest) -> Case:
    return build_case(*request.param)


def assert_close(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Equal up to the precision's tolerance, and that of what is stored in float32, relative to the largest value."""
    assert actual.shape == expected.shape
    tolerance = max(TOLERANCE[actual.dtype], 1e-7 if expected.dtype == np.float32 else 0)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    if (expected == 0).all():  # or there is none
        assert not actual.any()
        return
    error = (actual.detach().double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"


def test_every_layers_logits_are_the_released_models(case):
    predictions, _ = case.predict()
    assert_close(predictions.final[0], case.arrays["pred_logits"])
    assert_close(predictions.final[1], case.arrays["pred_masks"])
    for layer in range(len(predictions.class_logits) - 1):
        assert_close(predictions.class_logits[layer], case.arrays[f"aux{layer}_pred_logits"])
        assert_close(predictions.mask_logits[layer], case.arrays[f"aux{layer}_pred_masks"])


def test_losses_are_the_released_models(case):
    losses = case.training_losses()
    assert set(losses) == set(case.losses["weighted"])
    for name, value in losses.items():
        assert value.item() == pytest.approx(case.losses["weighted"][name], rel=TOLERANCE[value.dtype])


@pytest.mark.parametrize("name", ["mask2former/semantic", "mask2former/more_targets_than_queries", *EOMT_CASES])
def test_a_seed_gives_the_released_models_losses(name):
    """Points are drawn in the same order, so PyTorch's generator gives the same ones."""
    case = build_case(name, torch.float64)
    torch.manual_seed(5)
    losses = case.model(case.batch)
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(case.losses["weighted"], rel=1e-9)


def test_costs_and_matches_are_the_released_models(case):
    predictions, padded_size = case.predict()
    targets = [case.model._targets(example, padded_size) for example in case.batch]
    with handed_out(case.draws):
        masks = case.model.criterion.masks.prepare(predictions, targets)
    costs = case.model.criterion.matcher.costs(predictions, targets, masks)
    matches = case.model.criterion.matcher(predictions, targets, masks)
    for call, name in enumerate(case.losses["matching_order"]):
        layer = -1 if name == "final" else int(name.removeprefix("aux_"))
        for image, target in enumerate(targets):
            assert_close(costs[layer, image, :, : len(target.labels)], case.arrays[f"cost_{name}_img{image}"])
            match = matches[layer][image]
            assert [match.query_indices.tolist(), match.target_indices.tolist()] == case.losses["indices"][call][image]


def test_gradients_are_the_released_models(case):
    # In float32 a hidden unit of ReLU, or a point between two cells, may be on the other side of its kink.
    tolerance = {**TOLERANCE, torch.float32: 1e-3} if case.draws else TOLERANCE
    assert_gradients(case, tolerance, NOISE)


def assert_gradients(case: Case, tolerances: dict[torch.dtype, float], noises: dict[torch.dtype, float]) -> None:
    case.model.zero_grad()
    sum(case.training_losses().values()).backward()
    total = sum(right["l2"] ** 2 for right in case.grads.values()) ** 0.5
    gradients = by_released_names({name: parameter.grad for name, parameter in case.model.named_parameters()})
    for name, of_parameter in gradients.items():
        gradient, right = of_parameter.double().flatten(), case.grads[name]
        direction = gradient @ torch.cos(torch.arange(len(gradient), dtype=torch.float64))
        # Gradients that are zero but for rounding (biases before a softmax) are held to the whole gradient's scale.
        tolerance = tolerances[of_parameter.dtype] * max(right["l2"], noises[of_parameter.dtype] * total)
        for actual, key in ((gradient.norm(), "l2"), (gradient.sum(), "sum"), (direction, "dotcos")):
            assert abs(actual.item() - right[key]) < tolerance * len(gradient) ** 0.5, f"{key} of {name}"


def test_results_are_the_released_models(case):
    case.model.eval()
    with torch.no_grad():
        results = case.model(case.batch)
    case.model.train()
    for image, result in enumerate(results):
        if f"sem_seg{image}" in case.arrays:
            assert_close(result["sem_seg"], case.arrays[f"sem_seg{image}"])
        if "sem_seg_sum" in case.config:  # in float64, where the map is float32
            total, right = result["sem_seg"].double().sum().item(), case.config["sem_seg_sum"][image]
            assert total == pytest.approx(right, rel=TOLERANCE[result["sem_seg"].dtype])
        if f"panoptic_seg{image}" in case.arrays:
            segment_map, segments_info = result["panoptic_seg"]
            assert (segment_map.numpy() == case.arrays[f"panoptic_seg{image}"]).all()
            assert segments_info == case.config[f"segments_info{image}"]
        if f"instance_scores{image}" in case.arrays:
            assert_close(result["instances"].scores, case.arrays[f"instance_scores{image}"])
            assert result["instances"].pred_classes.tolist() == case.arrays[f"instance_classes{image}"].tolist()
            assert (result["instances"].pred_masks.numpy() == unpacked(case, f"instance_masks{image}")).all()


def test_losses_of_per_pixel_baselines_are_the_released_models(per_pixel_case):
    losses = per_pixel_case.model(per_pixel_case.batch)
    assert set(losses) == set(per_pixel_case.losses["weighted"])
    for name, value in losses.items():
        tolerance = PER_PIXEL_TOLERANCE[value.dtype]
        assert value.item() == pytest.approx(per_pixel_case.losses["weighted"][name], rel=tolerance)


def test_gradients_of_per_pixel_baselines_are_the_released_models(per_pixel_case):
    assert_gradients(per_pixel_case, PER_PIXEL_TOLERANCE, dict.fromkeys(NOISE, 1e-4))


@torch.no_grad()
def test_results_of_per_pixel_baselines_are_the_released_models(per_pixel_case):
    results = per_pixel_case.model.eval()(per_pixel_case.batch)
    per_pixel_case.model.train()
    for image, result in enumerate(results):
        assert_close(result["sem_seg"], per_pixel_case.arrays[f"sem_seg{image}"])


@pytest.mark.parametrize("name", ["base", "encoder_panoptic", "swin"])
def test_inner_features_are_the_released_models(name):
    case = build_case(name, torch.float64)
    features = case.model.backbone(case.model._normalise(case.batch).tensor)
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for level, feature in features.items():
        assert_close(feature, case.arrays[f"backbone_{level}"])
    if name == "swin":
        return  # its pixel decoder is that of the case base
    decoded = case.model.sem_seg_head.pixel_decoder(features)
    assert_close(decoded.mask_features, case.arrays["mask_features"])
    if decoded.encoded is not None:
        assert_close(decoded.encoded, case.arrays["transformer_encoder_features"])


def shifted_sums(x: torch.Tensor, conv: torch.nn.Module, dilation: int, stride: int = 1) -> torch.Tensor:
    """A convolution and its frozen norm: the sum over the kernel of shifted inputs, then every stride-th pixel."""
    kernel, (height, width) = conv.weight.shape[-1], x.shape[-2:]
    padded = torch.nn.functional.pad(x, [dilation * (kernel // 2)] * 4)
    total = sum(
        torch.einsum(
            "oc,bchw->bohw",
            conv.weight[:, :, row, column],
            padded[:, :, row * dilation : row * dilation + height, column * dilation : column * dilation + width],
        )
        for row in range(kernel)
        for column in range(kernel)
    )
    mean, variance, weight, bias = (
        getattr(conv.norm, name)[:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return ((total - mean) / (variance + 1e-5).sqrt() * weight + bias)[..., ::stride, ::stride]


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_blocks_of_res5_in_r101c_are_dilated_by_1_2_and_4(training: bool):
    thin = ("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4")
    model = build_model(recipe_config("ade20k-150/maskformer_R101c_bs16_160k.yaml", "MODEL.RESNETS.DEPTH", "50", *thin))
    draw_weights(model)
    backbone = model.double().train(training).backbone
    features = backbone(torch.randn(1, 3, 224, 320, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert features["res5"].shape[-2:] == (7, 10)
    x = features["res4"].clone()
    for block, dilation, stride in zip(backbone.res5, (1, 2, 4), (2, 1, 1), strict=True):
        shortcut = shifted_sums(x, block.shortcut, 1, stride) if stride == 2 else x
        inner = shifted_sums(shifted_sums(x, block.conv1, 1).relu(), block.conv2, dilation, stride).relu()
        x = (shifted_sums(inner, block.conv3, 1) + shortcut).relu()
    assert_close(features["res5"], x.numpy())


TRAINED = {"base": 1e-9, "encoder_panoptic": 1e-9, "swin": 1e-9, "per_pixel_plus": 1e-6}
TRAINED2 = {"mask2former/semantic": 1e-9, "mask2former/swin": 1e-9}


@pytest.mark.parametrize(("name", "precision"), [*TRAINED.items(), *TRAINED2.items()])
def test_three_optimizer_steps_are_the_released_trainers(name, precision):
    case = build_case(name, torch.float64)
    right = read_case_json(name, "train3.json")
    draws = iter(())
    if name in TRAINED2:
        arrays = np.load(case_folder("mask2former/train3_draws.npz"))
        draws = iter([arrays[f"draw{index}"] for index in range(len(arrays.files))])
    optimizer = build_optimizer(reference_config(name), case.model)
    for step in right["steps"]:
        loss = sum(case.training_losses(list(itertools.islice(draws, 16))).values())
        assert loss.item() == pytest.approx(step["loss_before_step"], rel=precision)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([parameter.grad.flatten() for parameter in case.model.parameters()]).norm()
        assert norm.item() == pytest.approx(step["grad_norm_before_clip"], rel=10 * precision)
        optimizer.step()
    for name, parameter in case.model.named_parameters():
        assert parameter.norm().item() == pytest.approx(right["param_l2_after"][name], rel=10 * precision), name


@pytest.mark.parametrize("name", ["one_empty_image", "all_empty", "more_targets_than_queries"])
def test_edge_cases_are_the_released_models(name):
    right = read_json("small", "edge_cases.json")[name]
    arrays = np.load(REFERENCE / "small" / f"edge_{name}" / "io.npz")
    model = build_case("base", torch.float64).model
    batch = [make_example(arrays[f"img{i}"], arrays[f"masks{i}"], arrays[f"classes{i}"]) for i in range(2)]
    losses = model(batch)
    for key, value in losses.items():
        assert value.item() == pytest.approx(right["weighted"][key], rel=1e-9)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert norm.item() == pytest.approx(right["grad_norm"], rel=1e-9)


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        ("ade20k-150/maskformer_R50_bs16_160k.yaml", "maskformer_R50_ade"),
        ("ade20k-150/maskformer_R101_bs16_160k.yaml", "maskformer_R101_ade"),
        ("ade20k-150/maskformer_R101c_bs16_160k.yaml", "maskformer_R101c_ade"),
        ("ade20k-150/per_pixel_baseline_R50_bs16_160k.yaml", "per_pixel_baseline_R50_ade"),
        ("ade20k-150/per_pixel_baseline_plus_R50_bs16_160k.yaml", "per_pixel_baseline_plus_R50_ade"),
        ("ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml", "maskformer_swin_tiny_ade"),
        ("ade20k-150/swin/maskformer_swin_small_bs16_160k.yaml", "maskformer_swin_small_ade"),
        ("ade20k-150/swin/maskformer_swin_base_IN21k_384_bs16_160k_res640.yaml", "maskformer_swin_base_384_ade"),
        ("coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml", "maskformer_panoptic_R50_coco"),
        ("coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k.yaml", "maskformer_panoptic_swin_tiny_coco"),
    ],
)
def test_parameter_names_and_shapes_are_the_released_models(recipe, parameters):
    assert_parameters(recipe, read_json("parameters", f"{parameters}.json"))


@pytest.mark.parametrize("recipe", read_lists("parameters"))
def test_parameter_names_and_shapes_are_the_released_mask2formers(recipe):
    assert_parameters(f"mask2former/{recipe}", read_lists("parameters")[recipe])


@pytest.mark.parametrize("recipe", read_lists("parameters", "eomt"))
def test_parameter_names_and_shapes_are_the_released_eomts(recipe):
    expected = read_lists("parameters", "eomt")[recipe]
    assert_parameters(f"eomt/{recipe}", [row for row in expected if "encoder.pixel_" not in row[0]])


def assert_parameters(recipe: str, expected: list[list[Any]]) -> None:
    """Of every entry of the state dict: name, shape, type, and whether it is trained."""
    with torch.device("meta"):  # shapes without memory
        model = build_model(recipe_config(recipe, "MODEL.DEVICE", "meta"))
    trained = by_released_names(dict(model.named_parameters()))
    actual = [
        [name, list(value.shape), str(value.dtype).removeprefix("torch."), "parameter" if name in trained else "buffer"]
        for name, value in by_released_names(model.state_dict()).items()
    ]
    assert sorted(actual) == sorted(expected)


def test_swin_large_has_the_released_number_of_parameters():
    recipe = "ade20k-150/swin/maskformer_swin_large_IN21k_384_bs16_160k_res640.yaml"
    with torch.device("meta"):
        model = build_model(recipe_config(recipe, "MODEL.DEVICE", "meta"))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert round(millions) == 212  # MaskFormer, table 1
