"""EoMT's network: who sees what, masks as products, sizes of pictures, precision, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference_cases import handed_out
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskformer.config import load_config
from maskformer.modeling import EoMTNetwork
from maskformer.modeling.backbones.vit import LayerScale, VisionTransformer, resample_positions
from maskformer.modeling.eomt import build_eomt_network

RECIPE = str(Path(__file__).resolve().parents[2] / "configs/eomt/coco_panoptic_small_640.yaml")
QUERIES, OTHERS = 5, 3  # class token and registers


def build(*, patch_size: int = 16, masked: bool = True, **options: object) -> EoMTNetwork:
    torch.manual_seed(0)
    image_size = (4 * patch_size, 4 * patch_size)
    vit = VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        **{"dim": 24, "depth": 3, "num_heads": 2, "num_registers": 2, "initial_scale": 1.0, **options},
    )
    network = EoMTNetwork(vit, num_classes=4, num_queries=QUERIES, num_blocks=2, masked_attention=masked)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.mul_(3)  # so that tokens differ and masks have both signs
    return network.double()


def pictures(number: int = 2, rows: int = 64, columns: int = 64, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, channels, rows, columns, dtype=torch.float64, generator=generator)


VARIANTS = [{}, {"rotary": True}, {"gated": True}]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_attention_is_the_softmax_of_products_over_what_is_allowed(options: dict):
    attention = build(**options).backbone.blocks[0].attn
    tokens = torch.randn(2, 9, 24, dtype=torch.float64)
    allowed = torch.rand(2, 4, 9) > 0.4
    allowed[:, :, 0] = True
    everything = torch.ones(2, 9, 9, dtype=torch.bool)
    everything[:, :4] = allowed
    bias = attention.qkv.bias
    if bias is None:
        bias = torch.cat([attention.q_bias, torch.zeros(24, dtype=torch.float64), attention.v_bias])
    query, key, value = (tokens @ attention.qkv.weight.T + bias).split(24, dim=-1)
    heads = []
    for head in (slice(0, 12), slice(12, 24)):
        scores = query[..., head] @ key[..., head].mT / 12**0.5
        heads.append(scores.masked_fill(~everything, -torch.inf).softmax(-1) @ value[..., head])
    expected = torch.cat(heads, dim=-1) @ attention.proj.weight.T + attention.proj.bias
    scale = LayerScale(24, 0.7).double()
    torch.testing.assert_close(attention(tokens, scale, None, allowed), 0.7 * expected)


@torch.no_grad()
def test_a_query_does_not_see_patches_outside_its_mask_and_all_else_sees_everything():
    block = build().backbone.blocks[-1]
    tokens = torch.randn(1, QUERIES + OTHERS + 4, 24, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, -1] += torch.randn(24)
    allowed = torch.ones(1, QUERIES, tokens.shape[1], dtype=torch.bool)
    allowed[0, 2, -1] = False
    moved = (block(tokens, None, allowed) - block(changed, None, allowed)).abs().amax(-1)[0]
    assert moved[2] == 0
    assert (moved[[0, 1, *range(3, tokens.shape[1])]] > 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_attention_is_fused_and_its_mask_is_not_copied_for_each_head(dtype: torch.dtype):
    network = build().to(dtype)
    calls: list[tuple[str, list[Tensor]]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "scaled_dot_product" in str(func):
                calls.append((str(func), [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]))
            return func(*args, **(kwargs or {}))

    with Recorder():
        predictions = network.predict_layers(pictures().to(dtype))
        predictions.class_logits.sum().backward()
    forward = [tensors for name, tensors in calls if "backward" not in name]
    assert len(forward) == 5 and not [name for name, _ in calls if "_math" in name]
    assert len(calls) == 10, "their gradients are fused as well"
    masks = [tensors[3] for tensors in forward if len(tensors) > 3]
    assert len(masks) == 2, "of the first rows alone"
    assert all(
        mask.shape[2] == QUERIES and mask.untyped_storage().nbytes() <= 2 * QUERIES * 24 * mask.element_size()
        for mask in masks
    )


@torch.no_grad()
def test_a_query_may_attend_where_its_mask_is_positive_and_is_opened_where_its_draw_exceeds_the_probability():
    network = build()
    logits = torch.tensor([-1.0, 2.0]).repeat_interleave(QUERIES)[None, :QUERIES, None, None].expand(1, -1, 16, 16)
    logits = logits.clone()
    logits[0, 0, :4, :4] = 5.0  # the first patch alone
    draws = torch.tensor([[0.5, 0.51, 0.2, 1.0, 0.49]])
    with handed_out([draws.numpy()]):
        allowed = network._may_attend(logits, pictures(1), 0.5)
    assert allowed[..., : QUERIES + OTHERS].all()
    of_patches = allowed[0, :, QUERIES + OTHERS :]
    assert of_patches.sum(1).tolist() == [1, 16, 0, 16, 0]
    assert of_patches[0, 0]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_permuted_queries_give_permuted_predictions(options: dict, training: bool):
    network = build(**options).train(training)
    network.backbone.rescale = 1.0
    before = network.predict_layers(pictures())
    order = torch.tensor([3, 0, 4, 2, 1])
    network.q.weight.copy_(network.q.weight[order])
    after = network.predict_layers(pictures())
    assert len(after.class_logits) == (3 if training else 1)
    torch.testing.assert_close(after.class_logits, before.class_logits[:, :, order])
    torch.testing.assert_close(after.mask_logits, before.mask_logits[:, :, order])
    assert (before.mask_logits[-1].amax((1, 2, 3)) - before.mask_logits[-1].amin((1, 2, 3)) > 0.1).all()


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_an_image_does_not_see_the_others_of_its_batch(training: bool):
    network = build().train(training)
    whole = network(pictures(3))
    for index in range(3):
        for alone, in_batch in zip(network(pictures(3)[index : index + 1]), whole):
            torch.testing.assert_close(alone[0], in_batch[index])


@torch.no_grad()
def test_masks_of_selected_queries_are_those_of_all():
    network = build().eval()
    class_logits, mask_logits = network(pictures())
    chosen = [torch.tensor([4, 1]), torch.tensor([], dtype=torch.int64)]
    waiting, encoded = iter(chosen), network.encode(pictures())
    for index, (classes, masks) in enumerate(network.compose(encoded, lambda _: next(waiting))):
        torch.testing.assert_close(classes, class_logits[index, chosen[index]])
        torch.testing.assert_close(masks, mask_logits[index, chosen[index]])
    for index, (classes, masks) in enumerate(network.compose(encoded)):
        torch.testing.assert_close(classes, class_logits[index])
        torch.testing.assert_close(masks, mask_logits[index])


def test_masks_of_pairs_are_those_predicted_and_have_the_gradients_that_these_have_not():
    network = build()
    predictions = network.predict_layers(pictures())
    assert not predictions.mask_logits.requires_grad
    layers = torch.arange(3).expand(3, -1)
    images = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 1, 1]])
    queries = torch.tensor([[0, 1, 2], [3, 3, 3], [4, 0, 1]])
    masks = predictions.masks_of_pairs(layers, images, queries, [1, 2])
    torch.testing.assert_close(masks, predictions.mask_logits[layers, images, queries])
    (masks.square().sum() + predictions.class_logits.square().sum()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    unmasked = build(masked=False)
    assert len(unmasked.predict_layers(pictures()).class_logits) == 1


def test_what_is_kept_for_gradients_is_smaller_than_pixel_embeddings():
    network, images, sizes = build(patch_size=16), pictures(2, 256, 256), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        predictions = network.predict_layers(images)
        pair = torch.zeros(2, 3, dtype=torch.int64)
        masks = predictions.masks_of_pairs(torch.arange(3).expand(2, -1), pair, pair, [2, 0])
    assert masks.requires_grad
    assert 2 * 64 * 64 * 24 / 2 > max(set(sizes) - {images.numel()}) > 0


@pytest.mark.parametrize("gated", [False, True])
def test_scaled_weights_give_what_scaled_tokens_give_with_their_gradients(gated: bool):
    block = build(gated=gated, initial_scale=0.3).backbone.blocks[0]
    tokens = torch.randn(2, 9, 24, dtype=torch.float64, requires_grad=True)
    results = []
    for training in (False, True):
        output = block.train(training)(tokens)
        gradients = torch.autograd.grad((output * torch.linspace(-1, 1, 24)).sum(), (tokens, *block.parameters()))
        results.append((output, *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_small_scales_are_kept_in_float16():
    """Scaled by DINOv2's first 1e-5, a weight of 0.02 would be three of float16's smallest steps."""
    scale, linear, tokens = LayerScale(4, 1e-5).train(), nn.Linear(4, 4), torch.ones(1, 4, dtype=torch.float16)
    scale, linear = scale.requires_grad_(False), linear.requires_grad_(False)
    with torch.autocast("cpu", torch.float16):
        result = scale.after(linear, tokens)
    torch.testing.assert_close(result, 1e-5 * linear(tokens.float()), rtol=2e-3, atol=1e-8)


@pytest.mark.parametrize(("patch_size", "stride"), [(4, 2), (8, 4), (16, 4), (32, 4)])
@torch.no_grad()
def test_masks_have_a_quarter_of_the_pictures_size(patch_size: int, stride: int):
    """With patches of four pixels there is one doubling nevertheless."""
    network = build(patch_size=patch_size).eval()
    _, masks = network(pictures(1, 2 * patch_size, 3 * patch_size))
    assert masks.shape[2:] == (2 * patch_size // stride, 3 * patch_size // stride)


@torch.no_grad()
def test_an_upscaled_pixel_is_what_its_neighbourhood_says():
    block = build().upscale[0]
    features = torch.randn(1, 24, 2, 3, dtype=torch.float64)
    larger = torch.empty(1, 24, 4, 6, dtype=torch.float64)
    for row in range(4):
        for column in range(6):
            kernel = block.conv1.weight[:, :, row % 2, column % 2]
            larger[0, :, row, column] = features[0, :, row // 2, column // 2] @ kernel + block.conv1.bias
    padded = F.pad(F.gelu(larger), [1] * 4)
    mixed = sum(
        block.conv2.weight[:, 0, row, column, None, None] * padded[:, :, row : row + 4, column : column + 6]
        for row in range(3)
        for column in range(3)
    )
    centred = mixed - mixed.mean(1, keepdim=True)
    scaled = centred / (mixed.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = scaled * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    torch.testing.assert_close(block(features), expected)


@torch.no_grad()
def test_pictures_of_another_size_have_positions_resampled_from_the_table():
    network = build().eval()
    backbone = network.backbone
    pixels = pictures(1, 96, 32)
    tokens, rotation = backbone.embed(pixels)
    assert rotation is None
    patches = F.conv2d(pixels, backbone.patch_embed["proj"].weight, backbone.patch_embed["proj"].bias, stride=16)
    positions = tokens[:, OTHERS:] - patches.flatten(2).mT
    torch.testing.assert_close(positions, resample_positions(backbone.pos_embed, (4, 4), (6, 2)))
    assert network(pixels)[1].shape == (1, QUERIES, 24, 8)
    constant = torch.full((1, 16, 24), 0.3)
    torch.testing.assert_close(resample_positions(constant, (4, 4), (7, 3)), torch.full((1, 21, 24), 0.3))
    ramp = torch.arange(4.0).repeat_interleave(4)[None, :, None]  # rises from row to row
    resized = resample_positions(ramp, (4, 4), (8, 4)).view(8, 4)
    assert (resized.diff(dim=0) > 0).all() and resized.diff(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize("new_size", [(3, 20), (12, 9), (1, 1), (25, 31)])
def test_positions_are_resampled_as_torch_does_with_antialiasing(new_size):
    table = torch.randn(1, 12 * 9, 5)
    maps = table.unflatten(1, (12, 9)).permute(0, 3, 1, 2)
    expected = F.interpolate(maps, new_size, mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(resample_positions(table, (12, 9), new_size), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rotations_are_rescaled_in_training_alone_and_turn_patches_alone():
    network = build(rotary=True, num_heads=1)
    backbone = network.backbone
    for training in (True, False):
        backbone.train(training)
        first, second = (backbone.embed(pictures(1))[1] for _ in range(2))
        assert torch.equal(first, second) != training
    backbone.rescale = 1.0
    assert torch.equal(backbone.train().embed(pictures(1))[1], first)
    # With a rotation scores depend on how far patches are from each other: a picture that repeats itself does too.
    assert first.shape == (2, 16, 24)
    assert first.square().sum(0).sub(1).abs().max() < 1e-12


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_half_precision_is_close_in_training_and_inference(options: dict):
    network = build(**options).float()
    network.backbone.rescale = 1.0
    pixels = pictures().float()
    for training in (False, True):
        network.train(training)
        expected = network.predict_layers(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = network.predict_layers(pixels)
        assert len(actual.class_logits) == (3 if training else 1)
        scale = expected.class_logits[0].abs().max().item()
        torch.testing.assert_close(actual.class_logits[0].float(), expected.class_logits[0], rtol=0, atol=0.05 * scale)
    with torch.no_grad():
        whole = network.eval().bfloat16()(pixels.bfloat16())
    assert whole[0].dtype == whole[1].dtype == torch.bfloat16
    expected_masks = network.float()(pixels)[1]
    torch.testing.assert_close(whole[1].float(), expected_masks, rtol=0, atol=0.1 * expected_masks.abs().max().item())


def test_configuration_says_sizes_channels_and_kinds():
    cfg = load_config(RECIPE, ["MODEL.DEVICE", "cpu", "MODEL.EOMT.IMAGE_SIZE", 96, "MODEL.EOMT.NUM_REGISTERS", 0])
    cfg.MODEL.EOMT.SWIGLU, cfg.MODEL.PIXEL_MEAN = True, [0.0] * 4  # a value for each channel
    with torch.device("meta"):
        network = build_eomt_network(cfg)
    assert network.backbone.patch_embed["proj"].weight.shape == (384, 4, 16, 16)
    assert network.backbone.pos_embed.shape == (1, 36, 384)
    assert network.backbone.num_prefix_tokens == 1
    assert network.backbone.blocks[0].mlp.fc1.weight.shape == (2048, 384)  # 2/3 of 4 D, twice
    assert network.q.weight.shape == (200, 384) and network.class_head.weight.shape == (134, 384)
    assert network.attn_mask_probs.shape == (3,) and len(network.backbone.blocks) == 12


def test_masking_probabilities_are_seen_in_the_state_dict():
    network = build()
    assert network.state_dict()["attn_mask_probs"].tolist() == [1, 1]
    network.set_masking([0.25, 1.0])
    assert network.state_dict()["attn_mask_probs"].tolist() == [0.25, 1]
