"""The set criterion: by hand, invariances, edge cases."""

from __future__ import annotations

import math

import pytest
import torch

from maskformer.losses import HungarianMatcher, SetCriterion, dice_loss, masks_per_batch, sigmoid_focal_loss
from maskformer.structures import MaskPredictions, Targets


def criterion(**options) -> SetCriterion:
    return SetCriterion(3, matcher=HungarianMatcher(), **options)


def random_problem(num_layers=2, num_queries=5, targets=(3, 2), dtype=torch.float64):
    predictions = MaskPredictions(
        torch.randn(num_layers, len(targets), num_queries, 4, dtype=dtype),
        torch.randn(num_layers, len(targets), num_queries, 4, 4, dtype=dtype),
    )
    return predictions, [Targets(torch.randint(3, (count,)), torch.rand(count, 16, 16) > 0.5) for count in targets]


def definition(
    predictions: MaskPredictions, targets: list[Targets], no_object_weight: float
) -> dict[str, torch.Tensor]:
    """Slow: the set prediction loss, sentence by sentence."""
    no_object_weight = torch.tensor(no_object_weight).item()  # weights are stored in float32
    losses, num_layers = {}, len(predictions.class_logits)
    matches = HungarianMatcher()(predictions, targets)
    num_masks = max(sum(len(target.labels) for target in targets), 1)
    for layer in range(num_layers):
        numerator = denominator = focal = dice = 0
        for image, target in enumerate(targets):
            match = matches[layer][image]
            classes = dict(zip(match.query_indices.tolist(), target.labels[match.target_indices].tolist()))
            for query, logits in enumerate(predictions.class_logits[layer, image]):
                label = classes.get(query, 3)
                weight = no_object_weight if label == 3 else 1.0
                numerator = numerator - weight * logits.log_softmax(-1)[label]
                denominator += weight
            for query, row in zip(match.query_indices.tolist(), match.target_indices.tolist()):
                mask = target.masks[row]
                logits = torch.nn.functional.interpolate(
                    predictions.mask_logits[layer, image, query][None, None], mask.shape, mode="bilinear"
                ).flatten(1)
                focal = focal + sigmoid_focal_loss(logits, mask.flatten()[None].to(logits.dtype), num_masks)
                dice = dice + dice_loss(logits, mask.flatten()[None].to(logits.dtype), num_masks)
        suffix = "" if layer == num_layers - 1 else f"_{layer}"
        losses |= {
            f"loss_ce{suffix}": numerator / denominator,
            f"loss_mask{suffix}": 20 * focal,
            f"loss_dice{suffix}": dice,
        }
    return losses


def test_losses_and_gradients_equal_the_definition():
    predictions, targets = random_problem(num_layers=3)
    for tensor in (predictions.class_logits, predictions.mask_logits):
        tensor.requires_grad_()
    gradients = []
    for losses in (criterion()(predictions, targets), definition(predictions, targets, 0.1)):
        total = sum(losses.values())
        gradients.append(torch.autograd.grad(total, [predictions.class_logits, predictions.mask_logits]))
        gradients[-1] += (total.detach(), *(losses[name].detach() for name in sorted(losses)))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_cross_entropy_is_a_weighted_mean_worked_by_hand():
    # Two queries with equal logits over 4 classes cost log 4 each; whatever the weights, their weighted mean is log 4.
    # With a certain "no object" on the unmatched query its part is 0: (1 * log 4 + 0.1 * 0) / 1.1.
    class_logits = torch.zeros(1, 1, 2, 4)
    class_logits[0, 0, 1, 3] = 100.0
    mask_logits = torch.full((1, 1, 2, 1, 1), 100.0)
    targets = [Targets(torch.tensor([0]), torch.ones(1, 4, 4, dtype=torch.bool))]
    losses = criterion()(MaskPredictions(class_logits, mask_logits), targets)
    assert losses["loss_ce"].item() == pytest.approx(math.log(4) / 1.1, rel=1e-5)
    assert losses["loss_mask"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_dice"].item() == pytest.approx(0, abs=1e-6)


def test_every_loss_is_multiplied_by_its_weight():
    predictions, targets = random_problem()
    plain = criterion(class_weight=1, mask_weight=1, dice_weight=1)(predictions, targets)
    weighted = criterion(class_weight=2, mask_weight=3, dice_weight=5)(predictions, targets)
    factors = {"ce": 2, "mask": 3, "dice": 5}
    for name, value in plain.items():
        torch.testing.assert_close(weighted[name], factors[name.split("_")[1]] * value)


def test_earlier_layers_carry_their_number():
    losses = criterion()(*random_problem(num_layers=3))
    assert set(losses) == {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1")}


def test_no_targets_at_all_gives_zero_mask_losses_and_gradients_everywhere():
    predictions, targets = random_problem(targets=(0, 0))
    predictions.mask_logits.requires_grad_()
    losses = criterion()(predictions, targets)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    sum(losses.values()).backward()
    assert predictions.mask_logits.grad.abs().sum() == 0


def test_more_targets_than_queries_are_told_once(caplog: pytest.LogCaptureFixture):
    losses_of = criterion()
    for targets in ((5, 1), (2, 6), (7, 0), (8, 9)):
        losses_of(*random_problem(num_queries=5 if targets == (5, 1) else 4, targets=targets))
    (message,) = caplog.messages  # not for as many as there are queries
    assert "6 segments, the model 4 queries: the 2 that" in message
    assert "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES" in message


def test_more_targets_than_queries_counts_all_targets():
    # Two of three targets find a query; the losses are still divided by three.
    predictions, targets = random_problem(num_layers=1, num_queries=2, targets=(3,))
    losses, right = criterion()(predictions, targets), definition(predictions, targets, 0.1)
    for name, value in losses.items():
        torch.testing.assert_close(value, right[name].detach())


def test_an_image_counts_at_most_as_many_masks_as_it_is_told():
    # Of 3 + 1 targets 2 + 1 find a query; whatever is counted, the sum over pairs is the same.
    problem = random_problem(num_queries=2, targets=(3, 1))
    all_targets, matched = criterion()(*problem), criterion(most_masks=2)(*problem)
    for name, value in matched.items():
        torch.testing.assert_close(value, all_targets[name] * (1 if "ce" in name.split("_") else 4 / 3))


def test_parts_of_a_batch_count_alike():
    of_matched = criterion(most_masks=2)
    with masks_per_batch(of_matched, [3, 1, 0, 2], num_parts=2):
        assert of_matched.num_masks == (2 + 1 + 0 + 2) / 2
    assert of_matched.num_masks is None


def test_larger_padding_does_not_change_the_class_loss_or_the_match():
    predictions, targets = random_problem()
    padded = MaskPredictions(
        predictions.class_logits, torch.nn.functional.pad(predictions.mask_logits, (0, 2, 0, 2), value=-50.0)
    )
    padded_targets = [Targets(t.labels, torch.nn.functional.pad(t.masks, (0, 8, 0, 8))) for t in targets]
    before, after = criterion()(predictions, targets), criterion()(padded, padded_targets)
    torch.testing.assert_close(after["loss_ce"], before["loss_ce"])


def test_a_batch_of_two_with_as_many_targets_is_the_mean_of_two_singles():
    predictions, targets = random_problem(num_layers=1, targets=(2, 2))
    both = criterion()(predictions, targets)
    singles = [
        criterion()(MaskPredictions(predictions.class_logits[:, [i]], predictions.mask_logits[:, [i]]), [targets[i]])
        for i in range(2)
    ]
    for name, value in both.items():
        torch.testing.assert_close(value, (singles[0][name] + singles[1][name]) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_extremes_give_finite_losses(dtype):
    predictions, targets = random_problem(dtype=torch.float32)
    largest = torch.finfo(dtype).max
    extreme = MaskPredictions(
        predictions.class_logits.sign().mul(min(largest, 6e4)).to(dtype).requires_grad_(),
        predictions.mask_logits.sign().mul(min(largest, 6e4)).to(dtype).requires_grad_(),
    )
    losses = criterion()(extreme, targets)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert extreme.mask_logits.grad.isfinite().all()


def test_mask_logits_of_one_pixel_are_enough():
    predictions = MaskPredictions(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 1, 1))
    losses = criterion()(predictions, [Targets(torch.tensor([1]), torch.ones(1, 1, 1, dtype=torch.bool))])
    assert losses["loss_dice"].item() == pytest.approx(1 - 2 / 2.5)


def test_a_cost_that_is_not_finite_makes_all_losses_nan_also_where_its_query_is_not_matched():
    predictions, targets = random_problem(num_queries=6, targets=(2, 1))
    finite = criterion()(predictions, targets)
    predictions.mask_logits[0, 1, 5] = torch.nan
    assert not HungarianMatcher()(predictions, targets)[0][1].has_finite_costs
    losses = criterion()(predictions, targets)
    assert losses.keys() == finite.keys()
    assert all(loss.isnan() for loss in losses.values())
