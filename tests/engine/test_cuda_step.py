"""What only a real CUDA device can show: how often a step waits for it, and that results are the CPU's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.workloads.inference import draw_class_logits, draw_mask_logits
from benchmarks.workloads.losses import draw_problem
from benchmarks.workloads.models import draw_batch
from benchmarks.workloads.training import set_up_ours
from maskformer.engine.accelerator import Accelerator
from maskformer.engine.step import pin
from maskformer.inference import Geometry, instance_inference, panoptic_inference, semantic_inference, semantic_labels
from maskformer.losses import HungarianMatcher, SetCriterion
from maskformer.structures import MaskPredictions, Targets

pytestmark = pytest.mark.cuda
RECIPE = "ade20k-150/maskformer_R50_bs16_160k.yaml"


def count_waits(work: Callable[[], Any]) -> int:
    """How often the host waits for the device, as PyTorch itself tells."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(each.message) for each in caught)


# Costs and losses; a loss scaler is asked besides for its scale, every 20 iterations.
@pytest.mark.parametrize(("precision", "waits"), [("float32", 2), ("bfloat16", 2), ("float16", 3)])
def test_a_step_waits_for_the_device_twice(precision: str, waits: int):
    step = set_up_ours(
        recipe=RECIPE, size=(64, 96), batch=3, masks=4, queries=12, precision=precision, tiny=True, device="cuda"
    )
    step()  # fills the optimiser
    step()
    assert count_waits(step) == waits


def test_pinned_examples_hold_the_same_values():
    example = draw_batch(1, (32, 48), 3, 5)[0]
    pinned = pin(example)
    assert pinned["image"].is_pinned() and pinned["instances"].gt_masks.segment_map.is_pinned()
    assert torch.equal(pinned["image"], example["image"])
    assert torch.equal(pinned["instances"].gt_classes, example["instances"].gt_classes)
    assert torch.equal(pinned["instances"].gt_masks.tensor, example["instances"].gt_masks.tensor)
    assert pinned["instances"].image_size == example["instances"].image_size


def test_losses_and_gradients_are_those_of_the_cpu():
    predictions, targets = draw_problem(size=(96, 128), batch=3, masks=5, queries=20, classes=7, layers=2, device="cpu")
    results = []
    for device in ("cpu", "cuda"):
        logits = [
            logits.detach().double().to(device).requires_grad_()
            for logits in (predictions.class_logits, predictions.mask_logits)
        ]
        moved = [Targets(target.labels.to(device), target.masks.to(device)) for target in targets]
        criterion = SetCriterion(7, matcher=HungarianMatcher()).to(device)
        losses = criterion(MaskPredictions(*logits), moved)
        gradients = torch.autograd.grad(sum(losses.values()), logits)
        results.append([*(loss.detach().cpu() for loss in losses.values()), *(each.cpu() for each in gradients)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("output_size", [(96, 126), (150, 201)])
def test_results_of_inference_are_those_of_the_cpu(output_size: tuple[int, int]):
    geometry = Geometry(padded_size=(96, 128), image_size=(96, 126), output_size=output_size)
    results = []
    for device in ("cpu", "cuda"):
        predicted = [
            logits.double().to(device) for logits in (draw_class_logits(20, 7, 6), draw_mask_logits(20, 6, (24, 32)))
        ]
        panoptic = panoptic_inference(
            *predicted, geometry, thing_class_ids={0, 1, 2}, object_mask_threshold=0.5, overlap_threshold=0.5
        )
        instances = instance_inference(*predicted, geometry, thing_class_ids=None, max_instances=30)
        results.append(
            [
                semantic_inference(*predicted, geometry, restore_masks_first=False).cpu(),
                semantic_labels(*predicted, geometry, restore_masks_first=True).cpu(),
                panoptic.segment_map.cpu(),
                panoptic.segments_info,
                instances.pred_masks.cpu(),
                instances.pred_boxes.tensor.cpu(),
                instances.scores.cpu(),
            ]
        )
    for cpu, cuda in zip(*results):
        if isinstance(cpu, torch.Tensor):
            torch.testing.assert_close(cuda, cpu, rtol=1e-9, atol=1e-12)
        else:
            assert cuda == cpu


def test_instance_inference_asks_the_device_a_fixed_number_of_times():
    geometry = Geometry(padded_size=(96, 128), image_size=(96, 126), output_size=(96, 126))
    waits = []
    for queries in (10, 40):
        predicted = [
            logits.cuda() for logits in (draw_class_logits(queries, 7, 6), draw_mask_logits(queries, 6, (24, 32)))
        ]
        options = {"thing_class_ids": None, "max_instances": queries}
        instance_inference(*predicted, geometry, **options)
        waits.append(count_waits(lambda of=predicted, by=options: instance_inference(*of, geometry, **by)))
    assert waits[0] == waits[1] <= 4


def test_report_says_how_float32_is_multiplied():
    assert Accelerator("cuda").describe()["float32 products"] == "highest, convolutions in TF32"
