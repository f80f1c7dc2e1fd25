"""EoMT from a picture to results of its size, as the released program does it: windows, squares, sizes, thresholds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import REFERENCE2, build_case, recipe_config
from torch import nn

from maskformer.data import InferenceMapper
from maskformer.data.mappers.base import evaluation_resize
from maskformer.engine.test_time import apply_test_time_options
from maskformer.inference.tta import window_starts
from maskformer.meta_arch import EoMT
from maskformer.structures import Classes

SEMANTIC, PANOPTIC = "eomt/ade20k_semantic_large_512.yaml", "eomt/coco_panoptic_large_640.yaml"
SLIDING_WINDOW = "MODEL.MASK_FORMER.TEST.SLIDING_WINDOW"


def read(case: str) -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE2 / "eomt_inference" / f"{case}.npz"))


def load(picture: np.ndarray, recipe: str, side: int, folder: Path) -> dict:
    """What evaluation loads of a picture (3,H,W), with a recipe for squares of another side."""
    path = folder / "picture.png"
    Image.fromarray(picture.transpose(1, 2, 0)).save(path)
    sizes = ["INPUT.MIN_SIZE_TEST", side, *(["INPUT.MAX_SIZE_TEST", side] if recipe == PANOPTIC else [])]
    return InferenceMapper(recipe_config(recipe, *sizes))({"file_name": str(path)})


@pytest.fixture(scope="module")
def semantic() -> nn.Module:
    """With its windows."""
    model = build_case("eomt/semantic_96", torch.float32).model.eval()
    _, windowed = apply_test_time_options(recipe_config(SEMANTIC, SLIDING_WINDOW, "(96, 96)"), model)
    return windowed


@pytest.fixture
def segmenting() -> EoMT:
    return build_case("eomt/panoptic_64", torch.float32).model.eval()


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_scores_of_square_windows_are_the_released_models(semantic: nn.Module, index: int, tmp_path: Path):
    right = read("semantic_96")
    example = load(right[f"image{index}"], SEMANTIC, 96, tmp_path)
    seen: list[np.ndarray] = []
    semantic.window.average(example["image"], lambda part: seen.append(part.numpy()) or part[:1].float())
    expected = right["windows"][right["origins"][:, 0] == index]
    assert np.array_equal(np.stack(seen), expected)
    (result,) = semantic([example])
    np.testing.assert_allclose(result["sem_seg"], right[f"sem_seg{index}"], atol=1e-4)


@pytest.mark.parametrize("side", [512, 1024])
def test_windows_start_where_the_released_program_has_them(side: int):
    for length in range(side + 1, 8 * side, 7):
        count = -(-length // side)
        shared = (count * side - length) / (count - 1)  # pixels, of two windows
        assert window_starts(length, side, 0.0) == [int(index * (side - shared)) for index in range(count)]


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_segments_of_a_picture_in_a_black_square_are_the_released_models(segmenting: EoMT, index: int, tmp_path: Path):
    right = read("panoptic_64")
    segmenting.inference = replace(segmenting.inference, object_mask_threshold=0.3, overlap_threshold=0.1)
    example = load(right[f"image{index}"], PANOPTIC, 64, tmp_path)
    padded = segmenting._normalise([example]).tensor[0] * segmenting.pixel_std + segmenting.pixel_mean
    assert np.array_equal(padded.round().byte().numpy(), right["padded"][index])
    (_, mask_logits, _), *_ = segmenting.predict([example])
    np.testing.assert_allclose(mask_logits, right["mask_logits"][index], atol=1e-4)
    segment_map, segments = segmenting([example])[0]["panoptic_seg"]
    assert np.array_equal(segment_map.numpy() - 1, right[f"id{index}"])
    categories = np.array([5, *(segment["category_id"] for segment in segments)])  # 5: void
    assert np.array_equal(categories[segment_map.numpy()], right[f"class{index}"])


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_instances_are_the_released_models(segmenting: EoMT, index: int, tmp_path: Path):
    right = read("instance_64")
    options = {"panoptic_on": False, "instance_on": True, "max_instances": 20}
    segmenting.inference = replace(segmenting.inference, **options)
    segmenting.classes = Classes("the case", ("a", "b", "c", "d", "e"), frozenset(range(5)))
    picture = read("panoptic_64")[f"image{index}"]
    instances = segmenting([load(picture, PANOPTIC, 64, tmp_path)])[0]["instances"]
    np.testing.assert_allclose(instances.scores, right[f"scores{index}"], atol=1e-5)
    assert np.array_equal(instances.pred_classes, right[f"classes{index}"])
    masks = np.unpackbits(right[f"masks{index}"], axis=-1)[..., : picture.shape[2]]
    assert np.array_equal(instances.pred_masks.numpy(), masks.astype(bool))


@pytest.mark.parametrize(
    ("recipe", "side", "size", "expected"),
    [
        (SEMANTIC, 96, (50, 83), (96, 159)),
        (SEMANTIC, 96, (64, 83), (96, 124)),  # 124.5
        (SEMANTIC, 96, (64, 85), (96, 128)),  # 127.5
        (SEMANTIC, 96, (85, 64), (128, 96)),
        (SEMANTIC, 96, (10, 2000), (96, 19200)),
        (PANOPTIC, 64, (50, 83), (39, 64)),
        (PANOPTIC, 64, (101, 64), (64, 41)),
        (PANOPTIC, 64, (128, 21), (64, 10)),  # 10.5
        (PANOPTIC, 64, (23, 128), (12, 64)),  # 11.5
        (PANOPTIC, 64, (8, 16), (32, 64)),  # small ones are enlarged
        (PANOPTIC, 640, (480, 640), (480, 640)),
    ],
)
def test_short_or_long_side_fits_the_square_and_halves_become_even(
    recipe: str, side: int, size: tuple[int, int], expected: tuple[int, int]
):
    sizes = ["INPUT.MIN_SIZE_TEST", side, *(["INPUT.MAX_SIZE_TEST", side] if recipe == PANOPTIC else [])]
    transform = evaluation_resize(recipe_config(recipe, *sizes)).get_transform(np.zeros((*size, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == expected


@torch.no_grad()
def test_two_pictures_of_different_sizes_are_what_each_is_alone(segmenting: EoMT):
    pictures = [torch.as_tensor(read("panoptic_64")[f"image{index}"]) for index in (0, 1)]
    examples = [{"image": picture[:, :40, :64]} for picture in pictures] + [{"image": pictures[0][:, :64, :30]}]
    for example, (class_logits, mask_logits, _) in zip(examples, segmenting.predict(examples)):
        (alone,) = segmenting.predict([example])
        torch.testing.assert_close(class_logits, alone[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mask_logits, alone[1], rtol=1e-4, atol=1e-4)
