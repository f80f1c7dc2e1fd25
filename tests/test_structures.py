"""SegmentMasks: one id map that stands for G masks. MaskPredictions: some masks of many."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from maskformer.structures import Classes, InputError, MaskPredictions, PixelsOfLayers, SegmentMasks

ID_MAP = torch.tensor([[0, 1], [3, 3]], dtype=torch.uint8)  # segment 1 (id 2) has no pixel


def test_masks_are_expanded_from_the_id_map():
    masks = SegmentMasks(ID_MAP, 3)
    assert masks.tensor.tolist() == [
        [[False, True], [False, False]],
        [[False, False], [False, False]],
        [[False, False], [True, True]],
    ]
    assert len(masks) == 3 and masks.image_size == (2, 2)


def test_nonempty_tells_segments_with_pixels():
    assert SegmentMasks(ID_MAP, 3).nonempty().tolist() == [True, False, True]


def test_indexing_selects_segments():
    masks = SegmentMasks(ID_MAP, 3)
    for index in (torch.tensor([True, False, True]), torch.tensor([0, 2]), slice(0, 3, 2)):
        assert torch.equal(masks[index].tensor, masks.tensor[index])
    assert torch.equal(masks[2].tensor, masks.tensor[[2]])


def test_padding_belongs_to_no_segment():
    padded = SegmentMasks(ID_MAP, 3)[1:].pad((0, 2, 0, 1))
    assert padded.tensor.shape == (2, 3, 4)
    assert torch.equal(padded.tensor[:, :2, :2], SegmentMasks(ID_MAP, 3).tensor[1:])
    assert not padded.tensor[:, 2:].any() and not padded.tensor[:, :, 2:].any()


def test_masks_on_two_maps_may_overlap():
    other = torch.tensor([[0, 2], [2, 0]], dtype=torch.uint8)
    masks = SegmentMasks(torch.stack([ID_MAP, other]), 3)
    assert masks.tensor.int().tolist() == [[[0, 1], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [1, 1]]]
    assert masks.image_size == (2, 2) and masks.nonempty().all()
    assert torch.equal(masks[1:].pad((1, 0, 0, 0)).tensor[..., 1:], masks.tensor[1:])


def test_size_between_processes_does_not_grow_with_the_number_of_segments():
    few, many = (len(pickle.dumps(SegmentMasks(torch.zeros(64, 64, dtype=torch.uint8), n))) for n in (1, 100))
    assert many - few < 100 * 8 + 100


def test_more_than_255_segments_fit_an_int_map():
    id_map = torch.arange(300, dtype=torch.int32).view(15, 20)
    masks = SegmentMasks(id_map, 299)
    assert masks.tensor.sum((1, 2)).tolist() == [1] * 299


def test_masks_of_pairs_are_those_of_all_with_their_gradients():
    embeddings = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    pixels = torch.randn(3, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    masks = torch.einsum("lbqc,bchw->lbqhw", embeddings, pixels)
    class_logits = torch.zeros(2, 3, 5, 3)
    layers, queries = torch.tensor([[0, 1], [1, 1], [1, 0]]), torch.tensor([[4, 2], [0, 2], [1, 1]])
    images, of_image = torch.tensor([[0, 0], [2, 2], [2, 2]]), [1, 0, 2]
    weights = torch.randn(3, 2, 6, 7, dtype=torch.float64)
    results = []
    products = MaskPredictions.from_embeddings(class_logits, embeddings, pixels)
    torch.testing.assert_close(products.mask_logits, masks, rtol=1e-12, atol=1e-12)
    for predictions in (MaskPredictions(class_logits, masks), products):
        picked = predictions.masks_of_pairs(layers, images, queries, of_image)
        gradients = torch.autograd.grad((picked * weights).sum(), (embeddings, pixels), retain_graph=True)
        results.append((picked, *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    assert torch.equal(results[0][0], masks[layers, images, queries])


def test_masks_of_pairs_have_the_gradients_of_pixels_that_each_layer_has_of_its_own_and_that_are_not_kept():
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GELU()).double()
    embeddings = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    features = [torch.randn(3, 2, 6, 7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    masks = torch.einsum("lbqc,lbchw->lbqhw", embeddings, torch.stack([module(x) for x in features]))
    layers, queries = torch.tensor([[0, 1]]).expand(3, -1), torch.tensor([[4, 2], [0, 2], [1, 1]])
    images, of_image = torch.tensor([[0, 0], [2, 2], [2, 2]]), [1, 0, 2]
    weights = torch.randn(3, 2, 6, 7, dtype=torch.float64)
    predictions = MaskPredictions(torch.zeros(2, 3, 5, 3), masks.detach(), embeddings, PixelsOfLayers(module, features))
    results = []
    for picked in (masks[layers, images, queries], predictions.masks_of_pairs(layers, images, queries, of_image)):
        gradients = torch.autograd.grad((picked * weights).sum(), (embeddings, *features, *module.parameters()))
        results.append((picked, *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_pixels_that_are_not_kept_are_computed_again_in_the_precision_of_autocast():
    module, seen = nn.Conv2d(2, 4, 1), []
    module.register_forward_hook(lambda _module, _inputs, result: seen.append(result.dtype))
    embeddings, features = torch.randn(1, 1, 5, 4, requires_grad=True), torch.randn(1, 2, 6, 7, requires_grad=True)
    masks = torch.randn(1, 1, 5, 6, 7, dtype=torch.bfloat16)
    predictions = MaskPredictions(torch.zeros(1, 1, 5, 3), masks, embeddings, PixelsOfLayers(module, [features]))
    pair = torch.zeros(1, 1, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        picked = predictions.masks_of_pairs(pair, pair, pair, [1])
    picked.float().sum().backward()
    assert seen == [torch.bfloat16]
    assert {x.grad.dtype for x in (embeddings, features, module.weight)} == {torch.float32}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_masks_of_pairs_lies_in_memory_as_the_pixels(memory_format: torch.memory_format):
    pixels = torch.randn(2, 4, 6, 7).contiguous(memory_format=memory_format).requires_grad_()
    embeddings = torch.randn(2, 2, 5, 4)
    predictions = MaskPredictions(torch.zeros(2, 2, 5, 3), torch.zeros(()), embeddings, pixels)
    pairs = torch.tensor([[0, 1], [1, 0]])
    picked = predictions.masks_of_pairs(pairs, torch.tensor([[0, 0], [1, 1]]), pairs, [1, 1])
    (gradient,) = torch.autograd.grad(picked.sum(), pixels)
    assert gradient.stride() == pixels.stride()


# --- Classes ---

TOY = Classes(
    "toy_train", ("water", "box", "ball"), frozenset({1, 2}), (4, 7, 9), ((0, 0, 255), (255, 0, 0), (0, 9, 0))
)


def test_classes_go_through_a_file_as_plain_containers(tmp_path: Path):
    torch.save(TOY.to_plain(), tmp_path / "classes.pth")
    content = torch.load(tmp_path / "classes.pth", weights_only=True)
    assert content == {
        "names": ["water", "box", "ball"],
        "things": [1, 2],
        "ids": [4, 7, 9],
        "colors": [[0, 0, 255], [255, 0, 0], [0, 9, 0]],
    }
    assert Classes.from_plain(content, "toy_train") == TOY
    bare = Classes("toy_train", TOY.names)
    assert Classes.from_plain(bare.to_plain(), "toy_train") == bare


@pytest.mark.parametrize("content", [None, 3, ["water"], {"number": 3}])
def test_what_other_programs_call_classes_is_none(content: object):
    assert Classes.from_plain(content, "a.pth") is None


@pytest.mark.parametrize(
    "change",
    [
        {"names": []},
        {"names": "water"},
        {"names": ["water", 1, "ball"]},
        {"things": [3]},
        {"things": [True]},
        {"ids": [1, 2]},
        {"colors": [[0, 0, 256]] * 3},
        {"colors": [[0, 0]] * 3},
    ],
)
def test_senseless_classes_name_the_file(change: dict):
    with pytest.raises(InputError, match=r"a\.pth"):
        Classes.from_plain({**TOY.to_plain(), **change}, "a.pth")


def test_names_out_of_a_file_have_no_control_characters():
    read = Classes.from_plain({"names": ["a\x1b[2J", "b\n"]}, "a.pth")
    assert read is not None and read.names == ("a?[2J", "b?")


def test_difference_names_both():
    other = Classes("toy_val", ("water", "ball", "box"))
    difference = TOY.difference(other)
    assert difference is not None
    assert all(
        words in difference for words in ("class 1", "'box' of toy_train", "'ball' of toy_val", "water, ball, box")
    )
    many = [Classes(name, tuple(f"{name}{i}" for i in range(50))) for name in "ab"]
    assert "a49" not in str(many[0].difference(many[1]))


@pytest.mark.parametrize("name", ["Box", "box, crate", "box-merged", "box-other-merged", " box "])
def test_spelling_of_the_same_class_is_no_difference(name: str):
    assert TOY.difference(Classes("toy_val", ("water", name, "ball"))) is None


def test_classes_are_completed_not_changed():
    bare = Classes("toy_val", TOY.names, things=frozenset())
    assert bare.completed_by(TOY) == Classes("toy_val", TOY.names, frozenset(), TOY.ids, TOY.colors)
