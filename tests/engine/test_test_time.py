from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from reference_cases import CONFIGS, build_case
from torch import Tensor, nn

from maskformer.config import load_config
from maskformer.engine.accelerator import Accelerator
from maskformer.engine.test_time import RetryingModel, apply_test_time_options, innermost
from maskformer.structures import InputError, RunError

AUG = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MAX_SIZE", "200"]
MASK_FORMER_TEST = "MODEL.MASK_FORMER.TEST."
ORIGINAL_SIZE = (50, 70)


@pytest.fixture(scope="module")
def semantic_model() -> nn.Module:
    return build_case("base", torch.float32).model.eval()


@pytest.fixture(scope="module")
def panoptic_model() -> nn.Module:
    """A model that gives all three kinds of result."""
    model = build_case("encoder_panoptic", torch.float32).model.eval()
    model.inference = replace(model.inference, semantic_on=True, instance_on=True)
    return model


@pytest.fixture(scope="module")
def per_pixel_model() -> nn.Module:
    return build_case("per_pixel", torch.float32).model.eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randint(0, 256, (3, *ORIGINAL_SIZE), dtype=torch.uint8)


def with_options(model: nn.Module, *options: str) -> nn.Module:
    _, test_model = apply_test_time_options(load_config("", options), model)
    return test_model


def augmented(model: nn.Module, sizes: str, flip: bool, *options: str) -> nn.Module:
    return with_options(model, *AUG, "TEST.AUG.MIN_SIZES", sizes, "TEST.AUG.FLIP", str(flip), *options)


@torch.no_grad()
def segment(model: nn.Module, image: Tensor) -> dict[str, Any]:
    rows, columns = image.shape[-2:]
    return model([{"image": image, "height": rows, "width": columns}])[0]


@torch.no_grad()
def segment_resized(model: nn.Module, image: Tensor, length: int) -> dict[str, Any]:
    """What plain evaluation with INPUT.MIN_SIZE_TEST gives."""
    pixels = image.permute(1, 2, 0).numpy()
    resized = T.ResizeShortestEdge([length], 200, "choice").get_transform(pixels).apply_image(pixels)
    rows, columns = image.shape[-2:]
    shown = torch.as_tensor(resized.transpose(2, 0, 1).copy())
    return model([{"image": shown, "height": rows, "width": columns}])[0]


def assert_same_results(results: dict[str, Any], expected: dict[str, Any]) -> None:
    assert results.keys() == expected.keys() == {"sem_seg", "panoptic_seg", "instances"}
    torch.testing.assert_close(results["sem_seg"], expected["sem_seg"])
    assert torch.equal(results["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert results["panoptic_seg"][1] == expected["panoptic_seg"][1] != []
    torch.testing.assert_close(results["instances"].scores, expected["instances"].scores)
    assert torch.equal(results["instances"].pred_masks, expected["instances"].pred_masks)
    assert torch.equal(results["instances"].pred_classes, expected["instances"].pred_classes)


def test_without_options_nothing_is_changed(semantic_model):
    cfg = load_config("")
    same_cfg, same_model = apply_test_time_options(cfg, semantic_model)
    assert same_cfg is cfg and same_model is semantic_model


def test_augmentation_takes_images_at_their_own_size_a_window_does_not(semantic_model):
    cfg = load_config("", AUG)
    loading_cfg, _ = apply_test_time_options(cfg, semantic_model)
    assert (loading_cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST) == (0, 800)
    window_cfg = load_config("", [f"{MASK_FORMER_TEST}SLIDING_WINDOW", "(8,8)"])
    assert apply_test_time_options(window_cfg, semantic_model)[0].INPUT.MIN_SIZE_TEST == 800


def test_one_size_without_flip_is_plain_evaluation(panoptic_model, image):
    results = segment(augmented(panoptic_model, "(64,)", False), image)
    assert_same_results(results, segment_resized(panoptic_model, image, 64))


def test_the_same_view_twice_is_plain_evaluation(panoptic_model, image):
    results = segment(augmented(panoptic_model, "(64,64)", False), image)
    assert_same_results(results, segment_resized(panoptic_model, image, 64))


@pytest.mark.parametrize("model", ["semantic_model", "panoptic_model", "per_pixel_model"])
def test_semantic_scores_are_the_mean_over_sizes_and_mirror_images(model, image, request):
    model = request.getfixturevalue(model)
    total = torch.zeros(5, *ORIGINAL_SIZE)
    for length in (32, 64):
        total += segment_resized(model, image, length)["sem_seg"]
        total += segment_resized(model, image.flip(-1), length)["sem_seg"].flip(-1)
    results = segment(augmented(model, "(32,64)", True), image)
    torch.testing.assert_close(results["sem_seg"], total / 4, rtol=1e-4, atol=1e-4)


def test_the_mirror_image_has_the_mirrored_scores(semantic_model, image):
    model = augmented(semantic_model, "(48,)", True)
    mirrored = segment(model, image.flip(-1))["sem_seg"].flip(-1)
    torch.testing.assert_close(mirrored, segment(model, image)["sem_seg"], rtol=1e-4, atol=1e-4)


def test_views_of_different_sizes_give_segments_at_the_images_own_size(panoptic_model, image):
    results = segment(augmented(panoptic_model, "(32,48,64)", True), image)
    assert results["panoptic_seg"][0].shape == ORIGINAL_SIZE == results["instances"].pred_masks.shape[1:]
    ids = set(results["panoptic_seg"][0].unique().tolist()) - {0}
    assert ids == {segment["id"] for segment in results["panoptic_seg"][1]} != set()
    most = min(100, 8 * len(panoptic_model.thing_class_ids))  # all pairs of 8 queries and 5 classes are fewer than 100
    assert len(results["instances"]) == most  # of one set of 8 queries, not of six


def test_only_results_that_are_switched_on_are_given(panoptic_model, image, monkeypatch):
    monkeypatch.setattr(panoptic_model, "inference", replace(panoptic_model.inference, semantic_on=False))
    assert segment(augmented(panoptic_model, "(32,)", True), image).keys() == {"panoptic_seg", "instances"}


@pytest.mark.parametrize("model", ["semantic_model", "per_pixel_model"])
def test_a_window_as_large_as_the_image_is_plain_evaluation(model, image, request):
    model = request.getfixturevalue(model)
    windowed = with_options(model, f"{MASK_FORMER_TEST}SLIDING_WINDOW", str(ORIGINAL_SIZE))
    assert torch.equal(segment(windowed, image)["sem_seg"], segment(model, image)["sem_seg"])


@pytest.mark.parametrize("model", ["semantic_model", "per_pixel_model"])
def test_two_overlapping_windows_by_hand(model, image, request):
    model = request.getfixturevalue(model)
    options = [f"{MASK_FORMER_TEST}SLIDING_WINDOW", "(50,40)", f"{MASK_FORMER_TEST}SLIDING_WINDOW_OVERLAP", "0.25"]
    scores = segment(with_options(model, *options), image)["sem_seg"]
    left, right = (segment(model, image[..., part])["sem_seg"] for part in (slice(0, 40), slice(30, 70)))
    torch.testing.assert_close(scores[..., :30], left[..., :30])
    torch.testing.assert_close(scores[..., 30:40], (left[..., 30:] + right[..., :10]) / 2)
    torch.testing.assert_close(scores[..., 40:], right[..., 10:])


def test_scores_of_windows_are_resized_to_the_size_asked_for(semantic_model, image):
    model = with_options(semantic_model, f"{MASK_FORMER_TEST}SLIDING_WINDOW", "(50,40)")
    with torch.no_grad():
        (result,) = model([{"image": image, "height": 100, "width": 90}])
    expected = nn.functional.interpolate(segment(model, image)["sem_seg"][None], size=(100, 90), mode="bilinear")[0]
    torch.testing.assert_close(result["sem_seg"], expected)


def test_windows_of_views_are_averaged_like_views(semantic_model, image):
    window = [f"{MASK_FORMER_TEST}SLIDING_WINDOW", "(50,40)"]
    windowed = with_options(semantic_model, *window)
    mirrored = segment(windowed, image.flip(-1))["sem_seg"].flip(-1)
    expected = (segment(windowed, image)["sem_seg"] + mirrored) / 2
    both = augmented(semantic_model, "(50,)", True, *window)
    torch.testing.assert_close(segment(both, image)["sem_seg"], expected)


@pytest.mark.parametrize("model", ["semantic_model", "per_pixel_model"])
def test_what_is_no_image_is_named_by_a_model_with_views_too(model: str, request: pytest.FixtureRequest):
    tested = augmented(request.getfixturevalue(model), "(64,)", flip=False)
    for batch in ([], [{"height": 3}], [{"image": torch.zeros(3, 8, 8), "width": 0}]):
        with pytest.raises(InputError, match="expected"):
            tested(batch)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_finds_the_models_own_mode(semantic_model, training):
    semantic_model.train(training)
    assert augmented(semantic_model, "(32,)", True).training is training
    semantic_model.eval()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([*AUG, "TEST.AUG.MIN_SIZES", "()"], r"TEST\.AUG\.MIN_SIZES is \(\)"),
        ([*AUG, "TEST.AUG.MIN_SIZES", "(0, 5)"], r"TEST\.AUG\.MIN_SIZES is \(0, 5\)"),
        ([*AUG, "TEST.AUG.MAX_SIZE", "0"], r"TEST\.AUG\.MAX_SIZE is 0"),
        ([f"{MASK_FORMER_TEST}SLIDING_WINDOW", "(5,)"], r"SLIDING_WINDOW is \(5,\), expected \(height, width\)"),
        ([f"{MASK_FORMER_TEST}SLIDING_WINDOW", "(5,0)"], r"SLIDING_WINDOW is \(5, 0\)"),
        (
            [f"{MASK_FORMER_TEST}SLIDING_WINDOW", "(5,5)", f"{MASK_FORMER_TEST}SLIDING_WINDOW_OVERLAP", "1.0"],
            r"SLIDING_WINDOW_OVERLAP is 1\.0",
        ),
    ],
)
def test_an_impossible_value_names_its_key(semantic_model, options, sentence):
    with pytest.raises(InputError, match=sentence):
        with_options(semantic_model, *options)


def test_windows_with_panoptic_output_are_refused(panoptic_model):
    with pytest.raises(InputError, match="PANOPTIC_ON and INSTANCE_ON"):
        with_options(panoptic_model, f"{MASK_FORMER_TEST}SLIDING_WINDOW", "(8,8)")


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(InputError, match="META_ARCHITECTURE is Linear"):
        with_options(nn.Linear(1, 1), *AUG)


def test_a_model_that_processes_train_together_is_taken_out_of_their_wrapper(semantic_model, monkeypatch):
    monkeypatch.setattr("maskformer.engine.test_time.DistributedDataParallel", Shared)
    assert augmented(Shared(semantic_model), "(32,)", True).model is semantic_model


class Shared(nn.Module):
    """Stands for ``DistributedDataParallel``, which needs a process group."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


def test_recipes_have_views_that_can_be_planned(semantic_model):
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if path.parent.name != "base":
            cfg: CfgNode = load_config(str(path), ["TEST.AUG.ENABLED", "True"])
            _, model = apply_test_time_options(cfg, semantic_model)
            assert len(model.views((480, 640))) == 2 * len(cfg.TEST.AUG.MIN_SIZES)


class LittleMemory(RetryingModel):
    """As on a device whose memory holds so many pixels of input, which none here is: allocations above fail."""

    def __init__(self, model: nn.Module, most_pixels: int, least_divisor: int = 1):
        super().__init__(model=model, accelerator=Accelerator("cpu"))
        self.divisors: list[int] = []

        def allocate(_: nn.Module, inputs: tuple[Tensor]) -> None:
            self.divisors.append(innermost(model).inference.band_divisor)
            pixels = inputs[0].shape[-2] * inputs[0].shape[-1]
            if pixels > most_pixels or self.divisors[-1] < least_divisor:
                torch.empty(2**50)

        self.handle = innermost(model).backbone.register_forward_pre_hook(allocate)


@pytest.fixture
def little_memory():
    made: list[LittleMemory] = []
    yield lambda *args: made.append(LittleMemory(*args)) or made[-1]
    for model in made:
        model.handle.remove()


def test_image_that_fits_is_segmented_as_ever(panoptic_model, image, little_memory):
    model = little_memory(panoptic_model, 10**9)
    assert_same_results(segment(model, image), segment(panoptic_model, image))
    assert model.divisors[:1] == [1]


def test_smaller_bands_give_the_same_results(panoptic_model, image, little_memory, caplog):
    expected = segment(panoptic_model, image)
    model = little_memory(panoptic_model, 10**9, 4)
    assert_same_results(segment(model, image), expected)
    assert model.divisors == [1, 2, 4]
    assert "Out of memory on cpu for 50x70 in Tiles(band_divisor=1, window_divisor=1); trying smaller" in caplog.text


@pytest.mark.parametrize(("most_pixels", "part"), [(64 * 128, 2), (32 * 64, 4)])
def test_semantic_model_sees_windows_where_the_image_is_too_large(semantic_model, little_memory, most_pixels, part):
    image = torch.randint(0, 256, (3, 128, 256), dtype=torch.uint8)
    scores = segment(little_memory(semantic_model, most_pixels), image)["sem_seg"]
    window = f"({128 // part},{256 // part})"
    options = [f"{MASK_FORMER_TEST}SLIDING_WINDOW", window, f"{MASK_FORMER_TEST}SLIDING_WINDOW_OVERLAP", "0.33"]
    torch.testing.assert_close(scores, segment(with_options(semantic_model, *options), image)["sem_seg"])


def test_image_too_large_for_the_smallest_tiles_ends_with_its_name(semantic_model, panoptic_model, little_memory):
    example = {"image": torch.zeros(3, 64, 96), "file_name": "large.jpg"}
    for model, attempts in ((panoptic_model, 3), (semantic_model, 5)):
        small = little_memory(model, 10)
        with pytest.raises(
            RunError, match=r"in the smallest tiles too: 64x96 \(large.jpg\). Lower INPUT.MIN_SIZE_TEST"
        ):
            small([example])
        assert len(small.divisors) == attempts


def test_other_errors_of_a_model_are_not_tried_again():
    class Broken(nn.Module):
        calls = 0

        def forward(self, _: list) -> list:
            self.calls += 1
            raise RuntimeError("shape mismatch")

    broken = Broken()
    with pytest.raises(RuntimeError, match="shape mismatch"):
        RetryingModel(model=broken, accelerator=Accelerator("cpu"))([])
    assert broken.calls == 1
