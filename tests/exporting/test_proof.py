"""The proof of an exported file: what counts as a difference, and what the file's users are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from brightest_file import write_brightest
from PIL import Image
from tiny_model import EOMT_CONFIG, SHAPES_CONFIG, TINY

import maskformer
from maskformer.config import load_config
from maskformer.exporting import commands
from maskformer.exporting.graph import OUTPUTS, SegmentationGraph
from maskformer.exporting.metadata import describe_export
from maskformer.exporting.proof import (
    LIMITS,
    Comparison,
    Limits,
    compare,
    find_runners,
    share_of_other_labels,
    views_of,
)
from maskformer.predictor import Predictor, load
from maskformer.structures import Classes, InputError

RGB = (0, 1, 2)
PICTURE = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((120, 100))
)


@pytest.fixture(scope="module")
def predictor(tiny_weights: str) -> Predictor:
    return load(SHAPES_CONFIG, tiny_weights, **{key.replace(".", "__"): value for key, value in TINY.items()})


def run_eagerly(graph: SegmentationGraph):
    """The graph where a program would run a file."""

    @torch.no_grad()
    def run(pictures: np.ndarray):
        images = torch.from_numpy(pictures)
        logits = graph.network(graph._prepare(images))
        return {name: output.numpy() for name, output in graph(images).items()}, [each.numpy() for each in logits]

    return run


def test_views_are_of_three_sizes_and_the_last_are_two_pictures():
    views = views_of(PICTURE, 96, None)
    assert [view.shape for view in views] == [(1, 3, 96, 115), (1, 3, 81, 73), (2, 3, 49, 59)]
    assert (views[2][1] == views[2][0, ..., ::-1]).all() and not (views[2][0] == views[2][1]).all()
    assert all(view.dtype == np.uint8 and view.flags.c_contiguous for view in views)


def test_views_of_a_fixed_size_have_it_and_differ():
    one, two, three = views_of(PICTURE, 96, (5, 70))
    assert one.shape == two.shape == three.shape == (1, 3, 5, 70)
    assert (one != two).any() and (two != three).any()


def test_semantic_labels_are_compared_pixel_by_pixel():
    actual, expected = np.array([[0, 1], [2, 3]]), np.array([[0, 1], [2, 0]])
    assert share_of_other_labels("semantic", {"labels": actual}, {"labels": expected}) == 0.25
    assert share_of_other_labels("semantic", {"labels": actual}, {"labels": actual}) == 0


def test_panoptic_segments_may_be_numbered_otherwise():
    expected = {"segment_map": np.array([[1, 1, 2], [0, 2, 2]]), "segment_classes": np.array([5, 7])}
    renumbered = {"segment_map": np.array([[3, 3, 1], [0, 1, 1]]), "segment_classes": np.array([7, -1, 5])}
    assert share_of_other_labels("panoptic", renumbered, expected) == 0
    of_another_class = {**renumbered, "segment_classes": np.array([7, -1, 4])}
    assert share_of_other_labels("panoptic", of_another_class, expected) == pytest.approx(2 / 6)


def test_a_panoptic_segment_that_is_two_there_differs_where_it_is_the_smaller():
    whole = {"segment_map": np.array([[1, 1, 1, 1]]), "segment_classes": np.array([5])}
    divided = {"segment_map": np.array([[1, 1, 1, 2]]), "segment_classes": np.array([5, 5])}
    assert share_of_other_labels("panoptic", divided, whole) == 0.25
    assert share_of_other_labels("panoptic", whole, divided) == 0.25


def test_instances_are_paired_by_class_and_pixels_whatever_their_order():
    masks = np.array([[[1, 1, 0, 0]], [[0, 0, 1, 0]]], bool)
    expected = {"labels": np.array([2, 4]), "masks": masks}
    swapped = {"labels": np.array([4, 2, -1]), "masks": np.concatenate([masks[::-1], masks[:1]])}
    assert share_of_other_labels("instance", swapped, expected) == 0
    of_another_class = {**swapped, "labels": np.array([3, 2, -1])}
    assert share_of_other_labels("instance", of_another_class, expected) == pytest.approx(2 / 6)
    missing = {"labels": np.array([2]), "masks": masks[:1]}
    assert share_of_other_labels("instance", missing, expected) == pytest.approx(1 / 5)
    nothing = {"labels": np.zeros(0, int), "masks": masks[:0]}
    assert share_of_other_labels("instance", nothing, nothing) == 0
    assert share_of_other_labels("instance", nothing, expected) == 1


@pytest.mark.parametrize(
    ("size", "proven"), [((1, 3000), (1, 3000)), ((100, 2000), (10, 200)), ((600, 512), (150, 128))]
)
def test_picture_is_proven_no_longer_than_the_model_was_tested(size: tuple[int, int], proven: tuple[int, int]):
    cfg = load_config(SHAPES_CONFIG, ["INPUT.MIN_SIZE_TEST", "128", "INPUT.MAX_SIZE_TEST", "200"])
    views = views_of(np.zeros((*size, 3), np.uint8), commands._shorter_side(size, cfg), None)
    assert views[0].shape[2:] == proven


def test_half_a_network_is_a_copy_that_normalises_in_float32(predictor: Predictor):
    half = commands._with_half_network(predictor.model)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert torch.equal(half.pixel_mean, predictor.model.pixel_mean)
    assert {parameter.dtype for parameter in predictor.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("task", OUTPUTS)
def test_the_graph_before_its_export_is_the_model(predictor: Predictor, task: str):
    runners = {"eager": run_eagerly(SegmentationGraph(predictor.model, task).eval())}
    found = list(compare(predictor.model, task, runners, views_of(PICTURE, 64, None), RGB))
    assert [each.shape[0] for each in found] == [1, 1, 2]
    for each in found:
        each.check(LIMITS["float32"], "float32")
        assert each.logits > 0  # which the model computes in another way


def test_another_weight_is_found(predictor: Predictor, tiny_weights: str):
    other = load(SHAPES_CONFIG, tiny_weights, **{key.replace(".", "__"): value for key, value in TINY.items()}).model
    with torch.no_grad():
        other.sem_seg_head.predictor.class_embed.weight[3] *= 1.01
    runners = {"eager": run_eagerly(SegmentationGraph(other, "semantic").eval())}
    found = list(compare(predictor.model, "semantic", runners, views_of(PICTURE, 64, None), RGB))
    with pytest.raises(InputError, match="eager"):
        for each in found:
            each.check(LIMITS["float32"], "float32")


@pytest.mark.parametrize("place", [0, 1])
def test_logits_that_are_no_numbers_are_found_where_labels_do_not_tell(predictor: Predictor, place: int):
    """As of a network of float16 whose products exceed its range."""
    run = run_eagerly(SegmentationGraph(predictor.model, "semantic").eval())

    def overflow(pictures: np.ndarray):
        outputs, logits = run(pictures)
        logits[place][0, 0] = np.nan
        return outputs, logits

    (found,) = compare(predictor.model, "semantic", {"eager": overflow}, views_of(PICTURE, 64, None)[:1], RGB)
    assert found.labels == 0
    with pytest.raises(InputError, match="nan"):
        found.check(LIMITS["float16"], "float16")


@pytest.fixture
def brightest(tmp_path: Path) -> Path:
    write_brightest(tmp_path / "brightest.onnx")
    return tmp_path / "brightest.onnx"


def test_programs_give_outputs_by_name_and_logits_that_the_file_does_not_give(brightest: Path):
    runners = find_runners(brightest, ["scores"])
    assert list(runners) == ["onnxruntime", "OpenVINO"]
    pictures = views_of(PICTURE, 16, None)[2]
    for run in runners.values():
        outputs, (scores,) = run(pictures)
        assert list(outputs) == ["labels"] and (outputs["labels"] == pictures.argmax(1)).all()
        assert (scores == pictures).all()


def test_a_file_that_a_program_cannot_run(brightest: Path, caplog: pytest.LogCaptureFixture):
    runners = find_runners(brightest, [])
    wrong = np.zeros((1, 4, 5, 6), np.uint8)
    model = torch.nn.Module()
    model.forward = lambda batch: [{"sem_seg": torch.zeros(3, 5, 6)} for _ in batch]
    with pytest.raises(InputError, match="onnxruntime"):
        list(compare(model, "semantic", {"onnxruntime": runners["onnxruntime"]}, [wrong], RGB))
    assert not list(compare(model, "semantic", {"OpenVINO": runners["OpenVINO"]}, [wrong], RGB))
    assert "OpenVINO" in caplog.text
    brightest.write_bytes(b"no model")
    with pytest.raises(InputError, match="onnxruntime"):
        find_runners(brightest, [])


@pytest.mark.parametrize(("logits", "labels"), [(0.2, 0.0), (0.0, 0.2), (float("nan"), 0.0), (0.0, float("nan"))])
def test_what_differs_too_much_is_refused_with_figures(logits: float, labels: float):
    comparison = Comparison("onnxruntime", (2, 3, 33, 65), logits, labels)
    with pytest.raises(InputError) as caught:
        comparison.check(Limits(logits=0.1, labels=0.1), "float32")
    assert all(fact in str(caught.value) for fact in ("onnxruntime", "33 x 65", "float32", "10.0%", f"{logits:.1e}"))
    Comparison("onnxruntime", (2, 3, 33, 65), 0.1, 0.1).check(Limits(logits=0.1, labels=0.1), "float32")


def describe(task: str = "semantic", classes: Classes | None = None, size=None, options: tuple = ()):
    cfg = load_config(SHAPES_CONFIG, ["MODEL.DEVICE", "cpu", *options])
    return describe_export(cfg, classes, task=task, size=size, precision="float32", opset=20, licence="")


def test_description_says_what_a_program_needs():
    names = tuple(f"name {index}" for index in range(9))
    colors = tuple((index, 10, 255 - index) for index in range(9))
    classes = Classes("here", names, things=frozenset({0, 3}), colors=colors)
    found = describe("panoptic", classes, size=(64, 96), options=("INPUT.FORMAT", "BGR"))
    assert found["classes"][3] == {"id": 3, "name": "name 3", "colour": [3, 10, 252], "is_thing": True}
    assert not found["classes"][1]["is_thing"] and len(found["classes"]) == 9
    assert found["thresholds"] == {"object_mask": 0.5, "overlap": 0.7}
    assert (found["input"]["size"], found["input"]["channel_order"]) == ([64, 96], "RGB")
    assert found["input"]["padding_colour"] == [104, 116, 124]  # the means, which are of blue, green and red
    assert (found["input"]["min_size_test"], found["input"]["max_size_test"]) == (128, 1333)
    assert [each["name"] for each in found["outputs"]] == list(OUTPUTS["panoptic"])
    assert (found["licence_of_weights"], found["maskformer_version"], found["opset"]) == (
        "not stated",
        maskformer.__version__,
        20,
    )


def test_smaller_pictures_are_filled_as_the_model_pads_them():
    assert describe()["input"]["padding_colour"] == [124, 116, 104]
    cfg = load_config(EOMT_CONFIG, ["MODEL.DEVICE", "cpu"])  # which pads before it normalises
    found = describe_export(cfg, None, task="queries", size=None, precision="float32", opset=20, licence="")
    assert found["input"]["padding_colour"] == [0, 0, 0]


@pytest.mark.parametrize("task", OUTPUTS)
def test_classes_that_nobody_knows_are_numbered(task: str):
    found = describe(task)
    assert [each["name"] for each in found["classes"]] == [f"class {index}" for index in range(9)]
    assert {each["is_thing"] for each in found["classes"]} == {None}
    assert [each["name"] for each in found["outputs"]] == list(OUTPUTS[task])
