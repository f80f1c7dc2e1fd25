"""Swin: windows and shifts by hand and by loops, stochastic depth, checkpointing, sizes, names."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from interfaces import BackboneTests
from torch.nn import functional as F

from maskformer.config import load_config
from maskformer.modeling import D2SwinTransformer
from maskformer.modeling.backbones.swin import rising_probabilities
from maskformer.modeling.backbones.swin_stage import (
    PatchMerging,
    SwinBlock,
    WindowAttention,
    join_windows,
    partition_windows,
    relative_position_index,
    shift_mask,
)
from maskformer.structures import InputError


def thin_swin(**options) -> D2SwinTransformer:
    arguments = {
        "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 3, "out_features": ("res2", "res3"),
        "stochastic_depth": 0.0, **options,
    }  # fmt: skip
    return D2SwinTransformer(**arguments)


def test_windows_are_cut_row_by_row():
    grid = torch.arange(24).reshape(1, 4, 6, 1)
    windows = partition_windows(grid, 2)
    assert windows[0, :, :, 0].tolist() == [
        [0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23],
    ]  # fmt: skip
    assert torch.equal(join_windows(windows, 2, 4, 6), grid)


def test_pairs_with_the_same_offset_share_a_bias():
    # Cells of a 2x2 window: (0,0) (0,1) (1,0) (1,1); the table counts row offsets -1..1, then column offsets -1..1.
    assert relative_position_index(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_shift_mask_keeps_cells_of_opposite_borders_apart():
    # 2 x 2 windows of 2 x 2 cells, rolled by one: the last row and column came from the first ones.
    mask = shift_mask(2, 2, 2, 1, None)
    assert not mask[0].any()
    assert mask[1].tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert mask[2].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert torch.equal(mask[3], ~torch.eye(4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "window", "shift"), [(2, 3, 2, 1), (3, 2, 3, 1), (1, 1, 3, 1), (1, 4, 7, 3)]
)
def test_shift_mask_equals_the_labels_of_regions(num_rows, num_columns, window, shift):
    # The definition: cells of a rolled grid attend to each other if the roll moved them alike.
    rows = torch.arange(num_rows * window) >= num_rows * window - shift
    columns = torch.arange(num_columns * window) >= num_columns * window - shift
    regions = (2 * rows[:, None] + columns[None, :]).view(1, num_rows * window, num_columns * window, 1)
    regions = partition_windows(regions, window)[0, :, :, 0]
    assert torch.equal(
        shift_mask(num_rows, num_columns, window, shift, None), regions[:, :, None] != regions[:, None, :]
    )


def attend_cell_by_cell(block: SwinBlock, x: torch.Tensor) -> torch.Tensor:
    """What a block's attention gives, one image, head and cell at a time, without rolls or masks."""
    attention, size = block.attn, block.window_size
    rows, columns, channels = x.shape
    padded_rows, padded_columns = math.ceil(rows / size) * size, math.ceil(columns / size) * size
    padded = x.new_zeros(padded_rows, padded_columns, channels)
    padded[:rows, :columns] = x
    width = channels // attention.num_heads
    scale = attention.scale or width**-0.5
    query, key, value = attention.qkv(padded).split(channels, dim=-1)

    def window(row: int, column: int) -> tuple[int, int]:
        return (row + size - block.shift) // size, (column + size - block.shift) // size

    cells = [(row, column) for row in range(padded_rows) for column in range(padded_columns)]
    output = torch.zeros_like(padded)
    for row, column in cells:
        seen = [cell for cell in cells if window(*cell) == window(row, column)]
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            logits = []
            for other_row, other_column in seen:
                offset = (row - other_row + size - 1) * (2 * size - 1) + column - other_column + size - 1
                bias = attention.relative_position_bias_table[offset, head]
                logits.append(scale * (query[row, column, part] @ key[other_row, other_column, part]) + bias)
            weights = torch.stack(logits).softmax(0)
            output[row, column, part] = sum(w * value[r, c, part] for w, (r, c) in zip(weights, seen))
    return attention.proj(output)[:rows, :columns]


@pytest.mark.parametrize(("shift", "qk_scale"), [(0, None), (1, None), (1, 0.3)])
@pytest.mark.parametrize("size", [(6, 9), (9, 5), (2, 4)])
@torch.no_grad()
def test_shifted_windows_equal_a_loop_over_cells(size, shift, qk_scale):
    block = SwinBlock(
        8, shift=shift, window_size=3, mlp_ratio=2.0, stochastic_depth=0.0, dropout=0.0, num_heads=2, qk_scale=qk_scale
    ).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    mask = shift_mask(*(math.ceil(length / 3) for length in size), 3, 1, None)
    actual = block._attend(x, mask)
    for image in range(2):
        torch.testing.assert_close(actual[image], attend_cell_by_cell(block, x[image]), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_block_adds_attention_and_network_to_its_input():
    block = SwinBlock(4, shift=0, window_size=2, mlp_ratio=3.0, stochastic_depth=0.0, dropout=0.0, num_heads=1)
    x = torch.randn(1, 2, 2, 4)
    y = x + block.attn(block.norm1(x).reshape(1, 1, 4, 4)).reshape(1, 2, 2, 4)
    hidden = F.gelu(block.norm2(y) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    expected = y + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    assert hidden.shape[-1] == 12
    torch.testing.assert_close(block(x, shift_mask(1, 1, 2, 1, None)), expected)


@torch.no_grad()
def test_merging_takes_four_neighbours_column_by_column_and_pads_an_odd_edge():
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction.weight.copy_(torch.tensor([[1000.0, 100.0, 10.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
    grid = torch.arange(1.0, 7.0).reshape(1, 2, 3, 1)  # 1 2 3 / 4 5 6
    assert merging(grid)[0, 0].tolist() == [[1425.0, 1.0], [3600.0, 3.0]]


def test_attention_weights_are_dropped_in_training_alone():
    attention = WindowAttention(4, window_size=2, num_heads=1, attention_dropout=0.5)
    windows = torch.randn(1, 2, 4, 4)
    assert not torch.equal(attention(windows), attention(windows))
    attention.eval()
    assert torch.equal(attention(windows), attention(windows))


def test_stochastic_depth_rises_linearly_over_all_blocks():
    assert rising_probabilities(0.5, [2, 1, 3]) == [[0.0, 0.1], [0.2], pytest.approx([0.3, 0.4, 0.5])]
    assert rising_probabilities(0.5, [1]) == [[0.0]]
    model = thin_swin(stochastic_depth=0.3)
    assert [block.drop_path.p for layer in model.layers for block in layer.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


@torch.no_grad()
def test_stochastic_depth_leaves_out_a_residual_of_an_image_or_scales_it():
    block = SwinBlock(4, shift=0, window_size=2, mlp_ratio=1.0, stochastic_depth=0.25, dropout=0.0, num_heads=1)
    block.mlp.fc2.weight.zero_()  # leaves the attention's residual alone
    block.mlp.fc2.bias.zero_()
    x = torch.randn(1, 2, 2, 4).expand(400, -1, -1, -1)
    mask = shift_mask(1, 1, 2, 1, None)
    residual = block.eval()(x, mask)[0] - x[0]
    changes = block.train()(x, mask) - x
    kept = changes.flatten(1).abs().sum(1) > 0
    assert 0.65 < kept.float().mean() < 0.85
    torch.testing.assert_close(changes[kept], (residual / 0.75).expand(int(kept.sum()), -1, -1, -1))


def test_checkpointing_gives_the_same_gradients_and_the_same_dropped_blocks():
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(5)
        model = thin_swin(use_checkpoint=use_checkpoint, stochastic_depth=0.5, dropout=0.1)
        images = torch.randn(2, 3, 22, 30, requires_grad=True)
        sum(feature.square().sum() for feature in model(images).values()).backward()
        gradients.append([images.grad, *(parameter.grad for parameter in model.parameters())])
    assert gradients[0][0].abs().min() > 0
    for kept, computed_again in zip(*gradients):
        torch.testing.assert_close(computed_again, kept)


def test_checkpointing_keeps_fewer_activations():
    saved = []
    for use_checkpoint in (False, True):
        model, kept = thin_swin(use_checkpoint=use_checkpoint), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            model(torch.randn(1, 3, 24, 24))
        saved.append(sum(kept))
    assert saved[1] < saved[0] / 4


@pytest.mark.parametrize("size", [(24, 48), (23, 45), (4, 4), (1, 7)])
@torch.no_grad()
def test_sizes_are_rounded_up_to_the_stride(size):
    features = thin_swin()(torch.randn(1, 3, *size))
    for (name, feature), stride, channels in zip(features.items(), (4, 8), (8, 16)):
        assert feature.shape == (1, channels, *(math.ceil(length / stride) for length in size)), name


@torch.no_grad()
def test_a_batch_of_two_equals_two_singles_and_sizes_do_not_disturb_each_other():
    model = thin_swin().eval()
    batch = torch.randn(2, 3, 40, 28)
    together = model(batch)["res3"]
    model(torch.randn(1, 3, 16, 60))
    for image, expected in zip(batch, together):
        torch.testing.assert_close(model(image[None])["res3"][0], expected, rtol=1e-4, atol=1e-5)


def test_inference_first_does_not_hinder_training():
    model = thin_swin()
    images = torch.randn(1, 3, 24, 24)
    with torch.inference_mode():
        expected = model(images)["res3"].clone()
    actual = model(images)["res3"]
    actual.sum().backward()
    torch.testing.assert_close(actual, expected)
    copy.deepcopy(model)


@torch.no_grad()
def test_absolute_position_is_added_as_it_is_or_resized():
    model = thin_swin(absolute_position=True, pretrain_image_size=16, patch_norm=False)
    position = model.absolute_pos_embed.normal_()
    assert position.shape == (1, 8, 4, 4)
    images = torch.zeros(1, 3, 16, 16)
    same = model._embed(images) - model.patch_embed(images)
    torch.testing.assert_close(same, position.permute(0, 2, 3, 1))
    wide = torch.zeros(1, 3, 16, 40)
    resized = F.interpolate(position, size=(4, 10), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(model._embed(wide) - model.patch_embed(wide), resized)


def test_gradients_reach_every_parameter():
    model = thin_swin(absolute_position=True, pretrain_image_size=32)
    sum(feature.square().sum() for feature in model(torch.randn(1, 3, 27, 33)).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_autocast_gives_half_precision_attention_close_to_the_full_one():
    model = thin_swin().eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(images)["res3"]
    torch.testing.assert_close(half.float(), model(images)["res3"], rtol=0.1, atol=0.1)


def test_outputs_are_those_asked_for():
    model = thin_swin(out_features=("res3",))
    assert list(model(torch.randn(1, 3, 16, 16))) == ["res3"]
    assert model.output_shape() == {"res3": ShapeSpec(channels=16, stride=8)}
    assert not hasattr(model, "norm0") and model.norm1.normalized_shape == (16,)
    assert model.size_divisibility == 8


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("MODEL.SWIN.OUT_FEATURES", "['res2','p5']", r"OUT_FEATURES is \['res2', 'p5'\].*res2, res3, res4, res5"),
        ("MODEL.SWIN.NUM_HEADS", "[3,6,12]", r"MODEL\.SWIN\.NUM_HEADS is \[3, 6, 12\], expected one number each"),
        ("MODEL.SWIN.NUM_HEADS", "[5,6,12,24]", r"expected divisors of the stages' channels \[96, 192, 384, 768\]"),
    ],
)
def test_stages_that_do_not_fit_are_refused_by_key(option, value, sentence):
    cfg = load_config("", [option, value])
    with torch.device("meta"), pytest.raises(InputError, match=sentence):
        D2SwinTransformer(cfg, ShapeSpec(channels=3))


def test_every_key_reaches_the_network():
    options = {
        "PATCH_SIZE": 2, "EMBED_DIM": 12, "DEPTHS": [1, 2], "NUM_HEADS": [2, 3], "WINDOW_SIZE": 5, "MLP_RATIO": 2.0,
        "QKV_BIAS": False, "QK_SCALE": 0.5, "DROP_RATE": 0.125, "ATTN_DROP_RATE": 0.25, "DROP_PATH_RATE": 0.375,
        "APE": True, "PRETRAIN_IMG_SIZE": 32, "PATCH_NORM": False, "OUT_FEATURES": ["res3"], "USE_CHECKPOINT": True,
    }  # fmt: skip
    cfg = load_config("", [str(word) for key, value in options.items() for word in (f"MODEL.SWIN.{key}", value)])
    model = D2SwinTransformer(cfg, ShapeSpec(channels=4))
    block = model.layers[1].blocks[1]
    assert model.patch_embed.proj.weight.shape == (12, 4, 2, 2)
    assert [len(layer.blocks) for layer in model.layers] == [1, 2]
    assert [layer.blocks[0].attn.num_heads for layer in model.layers] == [2, 3]
    assert (block.window_size, block.shift, block.mlp.fc1.out_features) == (5, 2, 48)
    assert block.attn.qkv.bias is None and block.attn.scale == 0.5 and block.attn.attention_dropout == 0.25
    assert model.pos_drop.p == block.attn.proj_drop.p == block.mlp.drop.p == 0.125
    assert block.drop_path.p == 0.375 and model.layers[0].use_checkpoint
    assert model.absolute_pos_embed.shape == (1, 12, 16, 16)
    assert isinstance(model.patch_embed.norm, torch.nn.Identity)
    assert list(model.output_shape()) == ["res3"]


@pytest.mark.parametrize(
    ("freeze_at", "trained"),
    [(0, {"patch_embed", "layers.0", "layers.1", "norm0", "norm1"}), (1, {"layers.0", "layers.1", "norm0", "norm1"}),
     (2, {"layers.1", "norm1"}), (3, set()), (5, set())],
)  # fmt: skip
def test_frozen_stages_are_not_trained(freeze_at: int, trained: set[str]):
    model = D2SwinTransformer(
        embed_dim=4, depths=(1, 1), num_heads=(1, 1), out_features=("res2", "res3"), freeze_at=freeze_at
    )
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {".".join(name.split(".")[: 2 if name.startswith("layers") else 1]) for name in names} == trained


def test_configured_stages_are_frozen():
    cfg = load_config("", ["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.BACKBONE.FREEZE_AT", "5"])
    model = D2SwinTransformer(cfg, ShapeSpec(channels=3))
    assert not any(parameter.requires_grad for parameter in model.parameters())


class TestSwin(BackboneTests):
    build = staticmethod(lambda: thin_swin(out_features=("res2", "res3")))
