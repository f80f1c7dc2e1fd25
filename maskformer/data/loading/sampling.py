"""Which image comes when: a pure function of (seed, repeat factors, position), so that a training resumes anywhere.

Letters: N images of the training set; an image's repeat factor says how often it comes in an epoch, on average. All of
Detectron2's samplers are repeat factors: 1 for each image (``TrainingSampler``), 1 for some and 0 for the rest
(``RandomSubsetTrainingSampler``), any numbers (``RepeatFactorTrainingSampler`` and the weighted ones).

The draws run through epoch after epoch, each shuffled by its own generator. Batches are cut from that one order, and
sharded over the processes in turn; the number of processes does not change which images a step has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# What a seed is for, so that no two uses of the same numbers agree.
_SHUFFLE, _SUBSET, _AUGMENT, _REPLACE = range(4)


class Draw(NamedTuple):
    """One image at one place of the order; the numbers also seed its augmentation.

    Attributes:
        epoch: passes over the images before this one.
        image: its index, 0..N-1.
        repeat: how often the image came before in this epoch.
    """

    epoch: int
    image: int
    repeat: int = 0


@dataclass(frozen=True)
class Position:
    """A place between two batches, from which draws go on.

    Attributes:
        epoch: of the next draw.
        offset: draws of that epoch that have been made.
        waiting: draws that have been made and not yet been in a batch, for want of others of their shape.
    """

    epoch: int = 0
    offset: int = 0
    waiting: tuple[Draw, ...] = field(default=())

    def to_state(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint."""
        return {"epoch": self.epoch, "offset": self.offset, "waiting": [list(draw) for draw in self.waiting]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Position:
        """The inverse of ``to_state``."""
        return cls(state["epoch"], state["offset"], tuple(Draw(*draw) for draw in state["waiting"]))


@dataclass(frozen=True)
class Sampler:
    """The endless draws.

    Attributes:
        seed: 0 or more; the same in all processes.
        repeat_factors: (N,) float, how often each image comes in an epoch; a fraction is rounded up or down at random.
    """

    seed: int
    repeat_factors: Tensor

    def epoch(self, number: int) -> list[Draw]:
        """The draws of one epoch, in order."""
        generator = _generator(self.seed, _SHUFFLE, number)
        whole = self.repeat_factors.floor()
        chance = torch.rand(len(whole), generator=generator, dtype=torch.float64)
        counts = (whole + (chance < self.repeat_factors - whole)).long()
        indices = torch.repeat_interleave(counts)
        repeats = torch.arange(len(indices)) - (counts.cumsum(0) - counts)[indices]
        order = torch.randperm(len(indices), generator=generator)
        pairs = zip(indices[order].tolist(), repeats[order].tolist())
        return [Draw(number, index, repeat) for index, repeat in pairs]

    def batches(
        self, start: Position, size: int, group_of: Callable[[int], int]
    ) -> Iterator[tuple[list[Draw], Position]]:
        """Cut the draws into batches, without end.

        Args:
            start: where to go on.
            size: draws in a batch.
            group_of: the group of an image by its index; a batch is of one group.

        Yields:
            A batch, and the position after it.
        """
        waiting: dict[int, list[Draw]] = {}
        for draw, epoch, offset in self._draws(start):
            group = group_of(draw.image)
            waiting.setdefault(group, []).append(draw)
            if len(waiting[group]) == size:
                batch = waiting.pop(group)
                left = tuple(draw for others in waiting.values() for draw in others)
                yield batch, Position(epoch, offset, left)

    def _draws(self, start: Position) -> Iterator[tuple[Draw, int, int]]:
        """Draws that wait, then new ones; with each, the epoch and offset after it."""
        yield from ((draw, start.epoch, start.offset) for draw in start.waiting)
        for number in itertools.count(start.epoch):
            made = start.offset if number == start.epoch else 0
            for offset, draw in enumerate(self.epoch(number)[made:], start=made + 1):
                yield draw, number, offset

    def replacements(self, draw: Draw) -> Iterator[int]:
        """Indices, without end, that may stand in for an image that cannot be used; the same for the same draw."""
        drawn = self.repeat_factors.nonzero().flatten().tolist()
        generator = np.random.default_rng([self.seed, _REPLACE, *draw])
        while True:
            yield drawn[int(generator.integers(len(drawn)))]


def shard(
    batches: Iterator[tuple[list[Draw], Position]], rank: int, world_size: int
) -> Iterator[tuple[list[Draw], Position]]:
    """Of every ``world_size`` batches the one for a process, with the position after all of them."""
    while True:
        step = list(itertools.islice(batches, world_size))
        yield step[rank][0], step[-1][1]


def augmentation_seeds(seed: int, draw: Draw, attempt: int = 0) -> list[int]:
    """Three seeds of 32 bits for the augmentation of one example, for Python, NumPy and PyTorch."""
    sequence = np.random.SeedSequence([seed, _AUGMENT, *draw, attempt])
    return [int(number) for number in sequence.generate_state(3)]


def choose_subset(size: int, ratio: float, seed: int) -> Tensor:
    """(N,) repeat factors: 1 for a random part of the images, 0 for the others."""
    chosen = torch.randperm(size, generator=_generator(seed, _SUBSET, 0))[: int(size * ratio)]
    return torch.zeros(size, dtype=torch.float64).index_fill_(0, chosen, 1)


def _generator(*numbers: int) -> torch.Generator:
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> 1))
