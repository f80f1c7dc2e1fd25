"""Inside the released Mask2Former, layer by layer: features, attention masks, what each layer gives, chosen points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_cases import CASES2, Case, build_case, unpacked
from test_reference import assert_close

from maskformer.losses import points
from maskformer.modeling.query_decoders import masked

SIZES = [(2, 3), (4, 6), (8, 12)]


@pytest.fixture(
    scope="module", params=[(case, dtype) for case in CASES2 for dtype in (torch.float64, torch.float32)], ids=str
)
def case(request: pytest.FixtureRequest) -> Case:
    return build_case(*request.param)


def record_outputs(case: Case) -> dict[str, torch.Tensor]:
    """What layers give in training, by the names of the arrays."""
    head = case.model.sem_seg_head
    modules = {}
    for index, layer in enumerate(head.pixel_decoder.transformer.encoder.layers):
        modules[f"encoder_layer{index}_self_attn"], modules[f"encoder_layer{index}"] = layer.self_attn, layer
    for index in range(3):
        for name, kind in (("cross", "cross_attention"), ("self", "self_attention"), ("ffn", "ffn")):
            modules[f"decoder_layer{index}_{name}"] = getattr(head.predictor, f"transformer_{kind}_layers")[index]
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        case.predict()
    for hook in hooks:
        hook.remove()
    return outputs


def test_every_layer_gives_what_the_released_models_does(case):
    outputs = record_outputs(case)
    for name, output in outputs.items():
        if name in case.arrays:
            assert_close(output, case.arrays[name])
    listed = {name for name in case.arrays if name.startswith(("encoder_layer", "decoder_layer"))}
    assert listed <= set(outputs)


@torch.no_grad()
def test_features_are_the_released_models(case):
    features = case.model.backbone(case.model._normalise(case.batch).tensor)
    decoded = case.model.sem_seg_head.pixel_decoder(features)
    found = {f"backbone_{name}": feature for name, feature in features.items()}
    found.update({f"multi_scale_{level}": feature for level, feature in enumerate(decoded.levels)})
    found["mask_features"] = decoded.mask_features
    for name in set(found) & set(case.arrays):
        assert_close(found[name], case.arrays[name])
    assert [tuple(feature.shape[-2:]) for feature in decoded.levels] == SIZES


@torch.no_grad()
def test_queries_may_attend_where_the_released_models_do(case, monkeypatch):
    allowed: list[torch.Tensor] = []

    def record(mask_logits: torch.Tensor) -> torch.Tensor:
        allowed.append(may_attend(mask_logits))
        return allowed[-1]

    may_attend = masked.may_attend
    monkeypatch.setattr(masked, "may_attend", record)
    case.predict()
    for layer, found in enumerate(allowed):
        forbidden = torch.as_tensor(unpacked(case, f"attn_forbidden_{layer}"))
        everything = case.config["queries_whose_mask_forbids_everything_before_layer"][layer]
        for image, queries in enumerate(everything):
            assert forbidden[image].all(1).nonzero()[:, 0].tolist() == queries
            forbidden[image, queries] = False
        assert torch.equal(found, ~forbidden)
    assert len(allowed) == 3


@pytest.mark.parametrize("name", CASES2)
def test_points_of_losses_are_the_released_models(name, monkeypatch):
    case = build_case(name, torch.float64)
    chosen: list[torch.Tensor] = []

    def record(*args) -> torch.Tensor:
        chosen.append(choose(*args))
        return chosen[-1]

    choose = points.choose_points
    monkeypatch.setattr(points, "choose_points", record)
    case.training_losses()
    points_of_layers = torch.cat(chosen)  # several layers are looked at together
    of_layers = points_of_layers.reshape(4, len(points_of_layers) // 4, *points_of_layers.shape[1:])
    for call, found in zip(["aux_0", "aux_1", "aux_2", "final"], of_layers, strict=True):
        # Pairs are in the order of targets here, of queries there; of equally uncertain points any is first.
        assert sets_of_points(found.numpy()) == sets_of_points(case.arrays[f"points_{call}"])


def sets_of_points(of_pairs: np.ndarray) -> list[list[list[float]]]:
    return sorted(sorted(points.tolist()) for points in of_pairs)
