"""Inside the released EoMT: tokens after each step, what queries may attend to, rotations; and without masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_cases import EOMT_CASES, Case, build_case, handed_out, unpacked
from test_reference import assert_close
from torch import Tensor

from maskformer.modeling.backbones.vit import patch_rotation

MASKED_CASES = [name for name in EOMT_CASES if name not in ("eomt/panoptic_64_unmasked", "eomt/dinov3_panoptic_64")]
DINOV3 = "eomt/dinov3_panoptic_64"


@pytest.fixture(
    scope="module", params=[(case, dtype) for case in EOMT_CASES for dtype in (torch.float64, torch.float32)], ids=str
)
def case(request: pytest.FixtureRequest) -> Case:
    return build_case(*request.param)


def record_tokens(case: Case) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """Tokens by the names of the arrays, and what each block's first tokens may attend to, in a training step."""
    tokens: dict[str, Tensor] = {}
    allowed: list[Tensor | None] = []

    def before_block(index: int, inputs: tuple) -> None:
        tokens["tokens_after_embedding" if index == 0 else f"block{index}_input"] = inputs[0]
        allowed.append(inputs[2] if len(inputs) > 2 else None)

    def before_feed_forward(index: int, inputs: tuple) -> None:
        tokens[f"block{index}_after_attention"] = inputs[0]

    hooks = []
    for index, block in enumerate(case.model.backbone.blocks):
        hooks.append(block.register_forward_pre_hook(lambda _, inputs, index=index: before_block(index, inputs)))
        hooks.append(
            block.norm2.register_forward_pre_hook(lambda _, inputs, index=index: before_feed_forward(index, inputs))
        )
    with torch.no_grad():
        case.predict()
    for hook in hooks:
        hook.remove()
    return tokens, allowed


def test_tokens_of_every_block_are_the_released_models(case):
    tokens, _ = record_tokens(case)
    listed = {name for name in case.arrays if name.startswith(("tokens", "block"))}
    for name in listed:
        assert_close(tokens[name], case.arrays[name])
    assert len(listed) == {"eomt/panoptic_64": 8, DINOV3: 8, "eomt/semantic_96": 1}.get(case.name, 0)


def test_queries_may_attend_where_the_released_models_do(case):
    _, allowed = record_tokens(case)
    assert allowed[:2] == [None, None]
    for block in (2, 3):
        if f"attn_allowed_block{block}" in case.arrays:
            assert torch.equal(allowed[block], torch.as_tensor(unpacked(case, f"attn_allowed_block{block}")))
    assert (allowed[2] is None) == (case.name == "eomt/panoptic_64_unmasked")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("name", "where", "suffix"),
    [("eomt/panoptic_64", "eomt/panoptic_64_unmasked", ""), (DINOV3, DINOV3, "_unmasked")],
)
@torch.no_grad()
def test_evaluation_is_the_released_model_without_masked_attention(name, where, suffix, dtype):
    case, right = build_case(name, dtype), build_case(where, dtype).arrays
    class_logits, mask_logits = case.model.eval().network(case.model._normalise(case.batch).tensor)
    assert_close(class_logits, right[f"pred_logits{suffix}"])
    assert_close(mask_logits, right[f"pred_masks{suffix}"])


def test_rotations_are_the_released_models_exactly():
    right = build_case(DINOV3, torch.float64).arrays
    cosines, sines = patch_rotation(4, 4, 16, scale=1.0, dtype=torch.float64, device=torch.device("cpu"))
    assert np.array_equal(cosines.numpy(), right["rope_cos"])
    assert np.array_equal(sines.numpy(), right["rope_sin"])


def test_a_seed_scales_the_places_of_patches_as_the_released_recipe_does():
    """In training, anew for each batch: the two that the original gave after its seed 5."""
    case = build_case(DINOV3, torch.float32)
    case.model.backbone.rescale = 2.0
    torch.manual_seed(5)
    images = torch.zeros(1, 3, 64, 64)
    for step in range(2):
        _, rotation = case.model.backbone.embed(images)
        assert_close(rotation[0], case.arrays[f"rope_train_default_cos{step}"])
        assert_close(rotation[1], case.arrays[f"rope_train_default_sin{step}"])
    _, unscaled = case.model.eval().backbone.embed(images)
    assert_close(unscaled[0], case.arrays["rope_cos"])


def test_a_probability_of_one_draws_nothing_and_of_zero_masks_nothing():
    case = build_case("eomt/panoptic_64", torch.float64)
    unmasked = build_case("eomt/panoptic_64_unmasked", torch.float64)
    case.model.network.set_masking([0.0, 0.0])
    draws = [np.full((2, 6), 0.25, dtype=np.float32)] * 2
    with handed_out(draws), torch.no_grad():
        predictions = case.model.predict_layers(case.model._normalise(case.batch).tensor)
    assert_close(predictions.final[0], unmasked.arrays["pred_logits"])
    assert_close(predictions.final[1], unmasked.arrays["pred_masks"])
