"""The released models' numbers, reproduced: outputs, losses, matches, gradients and optimiser steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_cases import CASES, REFERENCE, Case, build_case, make_example, read_json, reference_config

from maskformer.engine.optimizer import build_optimizer
from maskformer.structures import MaskPredictions

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

NOISE = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.fixture(scope="module", params=[(case, dtype) for case in CASES for dtype in TOLERANCE], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return build_case(*request.param)


def assert_close(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Equal up to the precision's tolerance, relative to the largest value."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    error = (actual.detach().double() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[actual.dtype], f"relative error {error:.2e}"


def predict(case: Case) -> tuple[MaskPredictions, tuple[int, int]]:
    images = case.model._normalise(case.batch)
    return case.model._predict(images), tuple(images.tensor.shape[-2:])


def test_every_layers_logits_are_the_released_models(case):
    predictions, _ = predict(case)
    assert_close(predictions.final[0], case.arrays["pred_logits"])
    assert_close(predictions.final[1], case.arrays["pred_masks"])
    for layer in range(len(predictions.class_logits) - 1):
        assert_close(predictions.class_logits[layer], case.arrays[f"aux{layer}_pred_logits"])
        assert_close(predictions.mask_logits[layer], case.arrays[f"aux{layer}_pred_masks"])


def test_losses_are_the_released_models(case):
    losses = case.model(case.batch)
    assert set(losses) == set(case.losses["weighted"])
    for name, value in losses.items():
        assert value.item() == pytest.approx(case.losses["weighted"][name], rel=TOLERANCE[value.dtype])


def test_costs_and_matches_are_the_released_models(case):
    predictions, padded_size = predict(case)
    targets = [case.model._targets(example, padded_size) for example in case.batch]
    costs = case.model.criterion.matcher.costs(predictions, targets)
    matches = case.model.criterion.matcher(predictions, targets)
    for call, name in enumerate(case.losses["matching_order"]):
        layer = -1 if name == "final" else int(name.removeprefix("aux_"))
        for image, target in enumerate(targets):
            assert_close(costs[layer, image, :, : len(target.labels)], case.arrays[f"cost_{name}_img{image}"])
            match = matches[layer][image]
            assert [match.query_indices.tolist(), match.target_indices.tolist()] == case.losses["indices"][call][image]


def test_gradients_are_the_released_models(case):
    case.model.zero_grad()
    sum(case.model(case.batch).values()).backward()
    total = sum(right["l2"] ** 2 for right in case.grads.values()) ** 0.5
    for name, parameter in case.model.named_parameters():
        gradient, right = parameter.grad.double().flatten(), case.grads[name]
        direction = gradient @ torch.cos(torch.arange(len(gradient), dtype=torch.float64))
        # Gradients that are zero but for rounding (biases before a softmax) are held to the whole gradient's scale.
        tolerance = TOLERANCE[parameter.dtype] * max(right["l2"], NOISE[parameter.dtype] * total)
        for actual, key in ((gradient.norm(), "l2"), (gradient.sum(), "sum"), (direction, "dotcos")):
            assert abs(actual.item() - right[key]) < tolerance * len(gradient) ** 0.5, f"{key} of {name}"


def test_results_are_the_released_models(case):
    case.model.eval()
    with torch.no_grad():
        results = case.model(case.batch)
    case.model.train()
    for image, result in enumerate(results):
        assert_close(result["sem_seg"], case.arrays[f"sem_seg{image}"])
        if "panoptic_seg" in result:
            segment_map, segments_info = result["panoptic_seg"]
            assert (segment_map.numpy() == case.arrays[f"panoptic_seg{image}"]).all()
            assert segments_info == case.config[f"segments_info{image}"]


@pytest.mark.parametrize("name", ["base", "encoder_panoptic"])
def test_inner_features_are_the_released_models(name):
    case = build_case(name, torch.float64)
    features = case.model.backbone(case.model._normalise(case.batch).tensor)
    pixel_embeddings, encoded = case.model.sem_seg_head.pixel_decoder(features)
    for level, feature in features.items():
        assert_close(feature, case.arrays[f"backbone_{level}"])
    assert_close(pixel_embeddings, case.arrays["mask_features"])
    if encoded is not None:
        assert_close(encoded, case.arrays["transformer_encoder_features"])


@pytest.mark.parametrize("name", ["base", "encoder_panoptic"])
def test_three_optimizer_steps_are_the_released_trainers(name):
    case = build_case(name, torch.float64)
    right = read_json("small", name, "train3.json")
    optimizer = build_optimizer(reference_config(name), case.model)
    for step in right["steps"]:
        loss = sum(case.model(case.batch).values())
        assert loss.item() == pytest.approx(step["loss_before_step"], rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([parameter.grad.flatten() for parameter in case.model.parameters()]).norm()
        assert norm.item() == pytest.approx(step["grad_norm_before_clip"], rel=1e-8)
        optimizer.step()
    for name, parameter in case.model.named_parameters():
        assert parameter.norm().item() == pytest.approx(right["param_l2_after"][name], rel=1e-8), name


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
    ("file", "parameters"),
    [
        ("ade20k-150/maskformer_R50_bs16_160k.yaml", "maskformer_R50_ade"),
        ("coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml", "maskformer_panoptic_R50_coco"),
    ],
)
def test_parameter_names_and_shapes_are_the_released_models(file, parameters):
    from detectron2.modeling import build_model
    from reference_cases import CONFIGS

    from maskformer.config import load_config

    model = build_model(load_config(str(CONFIGS / file), ["MODEL.DEVICE", "cpu"]))
    right = {name: shape for name, shape, *_ in read_json("parameters", f"{parameters}.json")}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == right
