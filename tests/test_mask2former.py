"""Mask2Former whole, and what all generations share: kinds of losses, parts put together, precision, results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from tiny_model import EOMT_CONFIG, MASK2FORMER_CONFIG, SHAPES_CONFIG, TINY, TINY_EOMT, TINY_MASK2FORMER
from torch import nn

from maskformer.config import load_config
from maskformer.engine.test_time import apply_test_time_options
from maskformer.losses import DenseMasks, PointMasks
from maskformer.predictor import load
from maskformer.structures import InputError, SegmentMasks

GENERATIONS = {
    "MaskFormer": (SHAPES_CONFIG, {**TINY, "MODEL.MASK_FORMER.DEC_LAYERS": 6}),
    "Mask2Former": (MASK2FORMER_CONFIG, TINY_MASK2FORMER),
    "EoMT": (EOMT_CONFIG, TINY_EOMT),
}
LATER = ["Mask2Former", "EoMT"]
KEYS = "MODEL.MASK_FORMER."
LOSS, POINTS, IN_FEATURE = f"{KEYS}MASK_LOSS", f"{KEYS}TRAIN_NUM_POINTS", f"{KEYS}TRANSFORMER_IN_FEATURE"
DECODER, PIXEL_DECODER = f"{KEYS}TRANSFORMER_DECODER_NAME", "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
ENCODED = ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", "['res3','res4']")
STANDARD = "StandardTransformerDecoder"


def config(name: str = "Mask2Former", *words: object) -> CfgNode:
    file, options = GENERATIONS[name]
    options = options | dict(zip(words[::2], words[1::2], strict=True))
    if options.get(LOSS) == "dense":
        options.pop(POINTS, None)  # nothing would read it
    return load_config(file, [str(word) for pair in options.items() for word in pair])


def build(name: str = "Mask2Former", *words: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config(name, *words)).train()


def example(seed: int, num_segments: int) -> dict:
    """An image of random pixels whose columns belong to the segments in turn."""
    instances = Instances((64, 96))
    instances.gt_classes = torch.arange(num_segments) % 9
    columns = (torch.arange(96) % (num_segments + 1)).to(torch.uint8)
    instances.gt_masks = SegmentMasks(columns.expand(64, 96).contiguous(), num_segments)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "sem_seg": columns.long().expand(64, 96)}


BATCH = [example(0, 2), example(1, 3)]


def without_gradient(model: nn.Module) -> list[str]:
    """Names of parameters that processes which exchange gradients would wait for in vain."""
    return [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in GENERATIONS for kind in ("dense", "points")])
def test_each_generation_learns_by_each_kind_of_losses(name: str, kind: str):
    model = build(name, LOSS, kind)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2 if name == "EoMT" else 1e-3
    )  # its blocks begin as nothing
    totals = []
    for _ in range(8):
        loss = sum(model(BATCH).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.9 * totals[0]
    assert without_gradient(model) == []


def test_auto_is_what_each_generation_was_published_with():
    assert isinstance(build("MaskFormer").criterion.masks, DenseMasks)
    assert build("Mask2Former", POINTS, 7).criterion.masks == PointMasks(7, 3.0, 0.75)
    assert isinstance(build("Mask2Former", LOSS, "dense").criterion.masks, DenseMasks)
    assert build("MaskFormer", LOSS, "points", POINTS, 7).criterion.masks == PointMasks(7, 3.0, 0.75)


@pytest.mark.parametrize("name", GENERATIONS)
@pytest.mark.parametrize("kind", ["dense", "points"])
@pytest.mark.parametrize(
    ("numbers", "words"),
    [((0, 0), ()), ((5, 0), (f"{KEYS}NUM_OBJECT_QUERIES", 2)), ((2, 3), None)],
    ids=["no target", "more targets than queries", "the last layer alone"],
)
def test_every_parameter_has_a_gradient_whatever_the_targets(name: str, kind: str, numbers: tuple, words: tuple):
    of_last = "MODEL.EOMT.MASKED_ATTENTION" if name == "EoMT" else f"{KEYS}DEEP_SUPERVISION"
    model = build(name, LOSS, kind, *((of_last, False) if words is None else words))
    losses = model([example(index, number) for index, number in enumerate(numbers)])
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["loss_mask"] == 0) == (sum(numbers) == 0)
    sum(losses.values()).backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_the_pixel_decoder_keeps_float32_under_autocast(half: torch.dtype):
    model = build()
    decoded: list = []
    model.sem_seg_head.pixel_decoder.register_forward_hook(lambda *args: decoded.append(args[2]))
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=half, enabled=enabled):
            losses.append(sum(model(BATCH).values()))
    losses[1].backward()
    assert decoded[1].mask_features.dtype == torch.float32 == losses[1].dtype
    assert {level.dtype for level in decoded[1].levels} == {torch.float32}
    assert losses[1].item() != losses[0].item()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.03)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_whole_model_in_another_precision_gives_nearly_the_same(name: str, kind: torch.dtype):
    model = build(name).eval()
    expected = model(BATCH)[0]["sem_seg"]
    actual = model.to(kind)(BATCH)[0]["sem_seg"]
    assert actual.dtype == kind
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=1e-5 if kind == torch.float64 else 0.05)


@pytest.mark.parametrize("attended", ["res4", "multi_scale_pixel_decoder", "transformer_encoder", "pixel_embedding"])
def test_the_first_generations_queries_attend_to_what_the_new_pixel_decoder_has(attended: str):
    model = build("Mask2Former", DECODER, STANDARD, IN_FEATURE, attended, LOSS, "dense")
    sizes = {"pixel_embedding": (16, 24)}
    fed: list = []
    model.sem_seg_head.predictor.register_forward_pre_hook(lambda _, inputs: fed.append(inputs))
    sum(model(BATCH).values()).backward()
    assert without_gradient(model) == []
    ((feature, decoded),) = fed
    assert feature.shape[2:] == sizes.get(attended, (4, 6))
    whole = {"pixel_embedding": decoded.mask_features, "res4": feature}.get(attended, decoded.levels[0])
    assert torch.equal(feature, whole)


@pytest.mark.parametrize("head", ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"])
def test_per_pixel_heads_stand_on_the_new_pixel_decoder(head: str):
    words = [*("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME", head)]
    model = build("MaskFormer", *words, PIXEL_DECODER, "MSDeformAttnPixelDecoder", *ENCODED)
    (loss,) = {"loss_sem_seg": 0}.keys() & (losses := model(BATCH)).keys()
    sum(losses.values()).backward()
    assert losses[loss] > 0 and without_gradient(model) == []


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ((PIXEL_DECODER, "BasePixelDecoder"), r"TRANSFORMER_IN_FEATURE.*'multi_scale.*needs MSDeformAttnPixelDecoder"),
        ((IN_FEATURE, "res4"), r"TRANSFORMER_IN_FEATURE is 'res4'.*'multi_scale_pixel_decoder'.*MultiScaleMasked"),
        (("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res3','res4']"), r"IN_FEATURES is \['res3', 'res4'\].*3 features"),
        ((ENCODED[0], "['res2','res4']"), r"ENCODER_IN_FEATURES is \['res2', 'res4'\].*coarsest.*res2, res3, res4"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(words: tuple, facts: str):
    with pytest.raises(InputError, match=facts):
        build("Mask2Former", *words)


def test_a_place_that_is_no_number_is_seen_in_the_losses():
    """As every other weight that is not finite, or the step would be taken."""
    model = build()
    layer = model.sem_seg_head.pixel_decoder.transformer.encoder["layers"][0]
    with torch.no_grad():
        layer.self_attn.sampling_offsets.bias[0] = torch.nan
    assert not sum(model(BATCH).values()).isfinite()


@pytest.mark.parametrize("name", LATER)
@torch.no_grad()
def test_all_tasks_are_predicted_and_views_and_windows_of_the_image_itself_change_nothing(name: str, tmp_path: Path):
    file, options = GENERATIONS[name]
    keys = {key.replace(".", "__"): value for key, value in options.items()}
    torch.save({"model": build(name).state_dict()}, tmp_path / "tiny.pth")
    predictor = load(file, tmp_path / "tiny.pth", **keys)
    result = predictor(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    assert {"sem_seg", "panoptic_seg", "instances"} <= result.keys()
    semantic = [f"{KEYS}TEST.PANOPTIC_ON", False, f"{KEYS}TEST.INSTANCE_ON", False, "INPUT.MIN_SIZE_TEST", 64]
    views = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", False]
    model = build(name, *semantic).eval()
    plain = model([BATCH[0]])[0]["sem_seg"]
    for words in (views, [f"{KEYS}TEST.SLIDING_WINDOW", "(64, 96)"]):
        _, again = apply_test_time_options(config(name, *semantic, *words), model)
        torch.testing.assert_close(again([BATCH[0]])[0]["sem_seg"], plain)
