"""The proof of an exported file: it is run beside the Python model on a real picture at three sizes."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from maskformer.engine.test_time import inference_options
from maskformer.meta_arch import MaskClassifier
from maskformer.structures import InputError

logger = logging.getLogger(__name__)

# A part of the picture as fractions (left, top, right, bottom), and its scale where sizes are free. The sides of the
# smaller ones are made odd, so that they are no multiple of what networks pad to; the last are two pictures at once.
VIEWS = (((0.0, 0.0, 1.0, 1.0), 1.0), ((0.0, 0.0, 0.75, 1.0), 0.75), ((0.25, 0.25, 1.0, 1.0), 0.5))


@dataclass(frozen=True)
class Limits:
    """What an exported file may differ by.

    Attributes:
        logits: the largest difference of a logit, over the largest absolute logit.
        labels: share of pixels with another label.
    """

    logits: float
    labels: float


OPTIONAL = "OpenVINO"  # the program that need not be able to run a file
LIMITS = {"float32": Limits(1e-3, 1e-3), "float16": Limits(2e-2, 1e-2), "int8": Limits(0.25, 0.1)}


@dataclass(frozen=True)
class Comparison:
    """How one file, run by one program on pictures of one size, differs from the Python model.

    Attributes:
        program: "onnxruntime", "OpenVINO" or "PyTorch".
        shape: of the pictures, (B,3,height,width).
        logits: see ``Limits``.
        labels: see ``Limits``.
    """

    program: str
    shape: tuple[int, ...]
    logits: float
    labels: float

    def __str__(self) -> str:
        batch, _, height, width = self.shape
        pictures = "a picture" if batch == 1 else f"{batch} pictures"
        return (
            f"{self.program}, {pictures} of {height} x {width}: logits differ by at most {self.logits:.1e} of their "
            f"scale, {self.labels:.3%} of pixels have another label"
        )

    def check(self, limits: Limits, precision: str) -> None:
        """Raise an ``InputError`` where more differs than may."""
        if not (self.logits <= limits.logits and self.labels <= limits.labels):  # NaN is no less
            raise InputError(
                f"The exported file is not the model ({self}); expected at most {limits.logits:g} of the scale and "
                f"{limits.labels:.1%} of pixels in {precision}. It was not kept: try another --precision or --picture."
            )


Outputs = dict[str, np.ndarray]
Runner = Callable[[np.ndarray], tuple[Outputs, list[np.ndarray]]]  # pictures -> outputs, and logits


def views_of(picture: np.ndarray, shorter: int, size: tuple[int, int] | None) -> list[np.ndarray]:
    """Pictures to prove a file with, (B,3,height,width) uint8 each.

    Args:
        picture: (height,width,3) uint8 RGB.
        shorter: length of the shorter side of the largest, in pixels.
        size: (height, width) that the file asks for; None: any.
    """
    image = Image.fromarray(picture)
    views = []
    for (left, top, right, bottom), scale in VIEWS:
        box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
        sides = box[3] - box[1], box[2] - box[0]
        free = [max(round(side * scale * shorter / min(sides)), 1) for side in sides]
        height, width = size or (free if scale == 1 else [side | 1 for side in free])
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
        views.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    if size is None:
        views[-1] = np.concatenate([views[-1], views[-1][..., ::-1]])
    return views


def run_with_onnxruntime(path: Path, logits: Sequence[str]) -> Runner:
    """Run an ONNX file; its logits are had from the same graph with more outputs, in memory.

    Args:
        path: of the file.
        logits: names of the graph's values that hold them.
    """
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    graph = onnx.load(path)
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in logits if not _is_output(graph, name))
    probe = onnxruntime.InferenceSession(graph.SerializeToString())
    names = [output.name for output in session.get_outputs()]

    def run(pictures: np.ndarray) -> tuple[Outputs, list[np.ndarray]]:
        feed = {session.get_inputs()[0].name: pictures}
        return dict(zip(names, session.run(None, feed))), probe.run(list(logits), feed)

    return run


def _is_output(model: Any, name: str) -> bool:
    return any(output.name == name for output in model.graph.output)


def run_with_openvino(path: Path, logits: Sequence[str]) -> Runner:
    """Run an ONNX file with OpenVINO, in the precision that it has; see ``run_with_onnxruntime``."""
    import openvino

    model = openvino.Core().read_model(path)
    names = [output.any_name for output in model.outputs]
    model.add_outputs([name for name in logits if name not in names])
    compiled = openvino.compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})

    def run(pictures: np.ndarray) -> tuple[Outputs, list[np.ndarray]]:
        results = compiled(pictures)
        return {name: results[name] for name in names}, [results[name] for name in logits]

    return run


def run_with_pytorch(path: Path) -> Runner:
    """Run a ``.pt2`` file; logits are what its part "network" gives."""
    program = torch.export.unflatten(torch.export.load(path))
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, given: Any) -> None:
        seen[:] = [given] if isinstance(given, Tensor) else [each for each in given if isinstance(each, Tensor)]

    program.get_submodule("network").register_forward_hook(keep)

    @torch.no_grad()
    def run(pictures: np.ndarray) -> tuple[Outputs, list[np.ndarray]]:
        outputs = program(torch.from_numpy(pictures))
        return {name: output.numpy() for name, output in outputs.items()}, [each.float().numpy() for each in seen]

    return run


@torch.no_grad()
def compare(
    model: nn.Module,
    task: str,
    runners: dict[str, Runner],
    views: Iterable[np.ndarray],
    channel_order: Sequence[int],
) -> Iterable[Comparison]:
    """Run the file in every way on every view.

    Args:
        model: the Python model, in evaluation mode.
        task: of the file.
        runners: by the name of the program; what cannot run the file is taken out.
        views: (B,3,height,width) uint8 RGB each.
        channel_order: which of these channels each channel of the model is.
    """
    for pictures in views:
        expected = _segment(model, task, np.ascontiguousarray(pictures[:, list(channel_order)]))
        for program, run in list(runners.items()):
            try:
                outputs, logits = run(pictures)
            except Exception as error:
                runners.pop(program)
                _say_that_it_cannot(program, error)
                continue
            of_logits, of_labels = [], []
            for index, (own_logits, own_result) in enumerate(expected):
                result = {name: output[index] for name, output in outputs.items()}
                if task == "queries":
                    result = {"labels": _labels_of(result)}
                of_logits += [_difference(each[index], own) for each, own in zip(logits, own_logits, strict=True)]
                of_labels.append(share_of_other_labels(task, result, own_result))
            # NumPy's, for which NaN is the largest: to Python's max it is so only in the first place.
            yield Comparison(program, pictures.shape, float(np.max(of_logits)), float(np.mean(of_labels)))


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value; the padding of per-pixel logits is left out."""
    actual = actual[..., : expected.shape[-2], : expected.shape[-1]]
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.abs(actual.astype(np.float32) - expected).max() / max(np.abs(expected).max(), 1e-6))


def _labels_of(logits: Outputs) -> np.ndarray:
    """The best class at each place of the mask grid."""
    class_logits, mask_logits = (torch.from_numpy(logits[name]).float() for name in ("class_logits", "mask_logits"))
    scores = torch.einsum("qk,qhw->khw", class_logits.softmax(-1)[:, :-1], mask_logits.sigmoid())
    return scores.argmax(0).numpy()


def _segment(model: nn.Module, task: str, pictures: np.ndarray) -> list[tuple[list[np.ndarray], Outputs]]:
    """What the Python model gives of each picture: logits, and the result in the form of the file's."""
    batch = [{"image": torch.from_numpy(picture)} for picture in pictures]
    if not isinstance(model, MaskClassifier):  # a SemanticSegmentor
        scores = [output["sem_seg"].numpy() for output in model(batch)]
        return [([each], {"labels": each.argmax(0)}) for each in scores]
    on = {f"{name}_on": name == task for name in ("semantic", "panoptic", "instance")}
    given = []
    with inference_options(model, **on):
        for class_logits, mask_logits, geometry in model.predict(batch):
            logits = [class_logits.numpy(), mask_logits.contiguous().numpy()]
            results = model.segment_results(class_logits, mask_logits, geometry)
            if task == "semantic":
                result = {"labels": model.semantic_scores(class_logits, mask_logits, geometry, as_labels=True).numpy()}
            elif task == "queries":
                result = {"labels": _labels_of(dict(zip(("class_logits", "mask_logits"), logits)))}
            else:
                result = _as_exported(task, results)
            given.append((logits, result))
    return given


def _as_exported(task: str, results: dict[str, Any]) -> Outputs:
    if task == "panoptic":
        segment_map, segments_info = results["panoptic_seg"]
        classes = [segment["category_id"] for segment in segments_info]
        return {"segment_map": segment_map.numpy(), "segment_classes": np.array(classes, int)}
    instances = results["instances"]
    fields = {"scores": instances.scores, "labels": instances.pred_classes, "masks": instances.pred_masks}
    return {name: values.numpy() for name, values in fields.items()}


def share_of_other_labels(task: str, actual: Outputs, expected: Outputs) -> float:
    """The share of pixels where two results of a task differ.

    Args:
        task: one of ``graph.OUTPUTS``.
        actual: outputs of one picture.
        expected: likewise.

    Returns:
        0..1. A panoptic pixel has another label if its class is another one, or its segment is not the one that most
        pixels of the other result's segment are in. Instances are paired so that the fewest pixels of the same class
        differ; their share is of the pixels of all masks of either.
    """
    if task == "instance":
        return _share_of_instances(actual, expected)
    if task != "panoptic":
        return float(np.mean(actual["labels"] != expected["labels"]))
    maps = [result["segment_map"].ravel().astype(np.int64) for result in (actual, expected)]
    classes = [np.append(-1, result["segment_classes"]) for result in (actual, expected)]
    pairs, counts = np.unique(np.stack(maps), axis=1, return_counts=True)
    # Of each segment of one result, the one of the other that it shares most pixels with.
    best: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for column in np.argsort(counts):
        for side in (0, 1):
            best[side][pairs[side, column]] = pairs[1 - side, column]
    same = [
        best[0][one] == other and best[1][other] == one and classes[0][one] == classes[1][other]
        for one, other in pairs.T
    ]
    return float(1 - counts[same].sum() / counts.sum())


def _share_of_instances(actual: Outputs, expected: Outputs) -> float:
    kept = actual["labels"] >= 0
    labels, own_labels = actual["labels"][kept], expected["labels"]
    masks, own_masks = (
        each.reshape(len(each), np.prod(each.shape[1:])).astype(np.float32)
        for each in (actual["masks"][kept], expected["masks"])
    )
    areas, own_areas = masks.sum(1)[:, None], own_masks.sum(1)
    total = areas.sum() + own_areas.sum()
    apart = np.where(labels[:, None] == own_labels, areas + own_areas - 2 * masks @ own_masks.T, areas + own_areas)
    rows, columns = linear_sum_assignment(apart)
    alone = total - areas[rows].sum() - own_areas[columns].sum()
    return float((apart[rows, columns].sum() + alone) / max(total, 1))


def find_runners(path: Path, logits: Sequence[str]) -> dict[str, Runner]:
    """All that can run a file here.

    Args:
        path: ``.onnx`` or ``.pt2``.
        logits: see ``run_with_onnxruntime``.

    Raises:
        InputError: PyTorch or ONNX Runtime cannot.
    """
    if path.suffix == ".pt2":
        programs: dict[str, Callable[[], Runner]] = {"PyTorch": lambda: run_with_pytorch(path)}
    else:
        programs = {"onnxruntime": lambda: run_with_onnxruntime(path, logits)}
        if importlib.util.find_spec(OPTIONAL.lower()) is not None:
            programs[OPTIONAL] = lambda: run_with_openvino(path, logits)
    runners = {}
    for program, build in programs.items():
        try:
            runners[program] = build()
        except Exception as error:
            _say_that_it_cannot(program, error)
    return runners


def _say_that_it_cannot(program: str, error: Exception) -> None:
    """An error of the one that must run the file; of the other, which lacks some operations, a warning."""
    reason = ([line for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
    if program != OPTIONAL:
        raise InputError(f"{program} cannot run the exported file, which was not kept: {reason}") from error
    logger.warning("%s cannot run this file, other programs can: %s", program, reason)
