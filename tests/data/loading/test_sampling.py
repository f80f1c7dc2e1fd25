from __future__ import annotations

from collections import Counter
from itertools import islice

import torch

from maskformer.data.loading.sampling import Draw, Position, Sampler, augmentation_seeds, choose_subset, shard


def alike(index: int) -> int:
    return 0


def odd(index: int) -> int:
    return index % 2


def sampler(size: int = 7, seed: int = 3) -> Sampler:
    return Sampler(seed, torch.ones(size, dtype=torch.float64))


def test_each_epoch_has_every_image_once_in_an_order_of_its_own():
    first, second = sampler().epoch(0), sampler().epoch(1)
    assert sorted(draw.image for draw in first) == sorted(draw.image for draw in second) == list(range(7))
    assert [draw.image for draw in first] != [draw.image for draw in second]
    assert {draw.epoch for draw in second} == {1} and {draw.repeat for draw in first} == {0}
    assert sampler().epoch(1) == second != sampler(seed=4).epoch(1)


def test_factors_say_how_often_an_image_comes():
    factors = torch.tensor([0.0, 1.0, 2.0, 1.5], dtype=torch.float64)
    epochs = [Sampler(0, factors).epoch(number) for number in range(400)]
    counts = Counter(draw.image for epoch in epochs for draw in epoch)
    assert (counts[0], counts[1], counts[2]) == (0, 400, 800)
    assert abs(counts[3] - 600) < 60  # six standard deviations
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)  # repeats differ, so they are augmented differently
    assert {draw.repeat for draw in epochs[0] if draw.image == 2} == {0, 1}


def test_subset_is_drawn_once_for_all_epochs():
    factors = choose_subset(10, 0.35, seed=1)
    assert factors.sum() == 3 and set(factors.tolist()) == {0, 1}
    assert torch.equal(factors, choose_subset(10, 0.35, seed=1))
    assert any(not torch.equal(factors, choose_subset(10, 0.35, seed=other)) for other in range(2, 6))


def test_batches_go_on_from_every_position_as_if_they_had_never_stopped():
    for group_of in (alike, odd):
        whole = list(islice(sampler().batches(Position(), 3, group_of), 30))
        for stopped, (_, position) in enumerate(whole):
            restored = Position.from_state(position.to_state())
            again = list(islice(sampler().batches(restored, 3, group_of), 29 - stopped))
            assert again == whole[stopped + 1 :]


def test_batches_in_order_hold_the_stream_and_grouped_ones_hold_one_group_each():
    draws = [draw for number in range(3) for draw in sampler().epoch(number)]
    in_order = [draw for batch, _ in islice(sampler().batches(Position(), 3, alike), 7) for draw in batch]
    assert in_order == draws
    grouped = [batch for batch, _ in islice(sampler().batches(Position(), 3, odd), 7)]
    assert all(len({draw.image % 2 for draw in batch}) == 1 for batch in grouped)
    handed_out = {draw for batch in grouped for draw in batch}
    assert len(handed_out) == 21 and handed_out <= {d for number in range(5) for d in sampler().epoch(number)}


def test_processes_share_the_batches_of_a_step_and_agree_on_the_position():
    whole = list(islice(sampler().batches(Position(), 2, alike), 12))
    dealt = [list(islice(shard(sampler().batches(Position(), 2, alike), rank, 3), 4)) for rank in range(3)]
    for step in range(4):
        assert [dealt[rank][step][0] for rank in range(3)] == [batch for batch, _ in whole[3 * step : 3 * step + 3]]
        assert {dealt[rank][step][1] for rank in range(3)} == {whole[3 * step + 2][1]}


def test_another_number_of_processes_goes_on_with_the_same_images():
    two = [list(islice(shard(sampler().batches(Position(), 2, alike), rank, 2), 9)) for rank in range(2)]
    _, position = two[0][3]
    one = islice(shard(sampler().batches(position, 4, alike), 0, 1), 5)
    assert [batch for batch, _ in one] == [two[0][step][0] + two[1][step][0] for step in range(4, 9)]


def test_augmentation_seeds_depend_on_every_number_and_on_nothing_else():
    seeds = augmentation_seeds(1, Draw(2, 3, 4), 5)
    assert seeds == augmentation_seeds(1, Draw(2, 3, 4), 5)
    assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)
    others = [(2, Draw(2, 3, 4), 5), (1, Draw(3, 3, 4), 5), (1, Draw(2, 4, 4), 5), (1, Draw(2, 3, 5), 5)]
    assert all(augmentation_seeds(*other) != seeds for other in [*others, (1, Draw(2, 3, 4), 6)])


def test_replacements_are_the_same_for_the_same_draw_and_only_of_what_is_drawn():
    some = Sampler(0, torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    first = list(islice(some.replacements(Draw(0, 1)), 50))
    assert first == list(islice(some.replacements(Draw(0, 1)), 50)) != list(islice(some.replacements(Draw(1, 1)), 50))
    assert set(first) == {1, 2, 4}
