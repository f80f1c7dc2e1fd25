"""The endless loader of training batches, which resumes exactly and can do without images that cannot be used."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from torch.utils.data import DataLoader, Dataset

from maskformer.structures import BadImageError, InputError

from ..files.reading import picture_size
from .sampling import Draw, Position, Sampler, augmentation_seeds, shard

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Mapper = Callable[[Record], Record]
MAX_ATTEMPTS = 10  # images in a row that may be bad
_BAD_IMAGES = "bad_images"  # the field of an example in which a worker reports: (index, message) of each


class Examples(Dataset):
    """Makes the example of a draw; nothing but the draw and the sampler's seed decides how it is augmented.

    ``by_shape``: images that are broader than high form a group of their own. ``skip_bad``: another image of the group
    stands in for one that raises ``BadImageError``.
    """

    def __init__(self, records: Sequence[Record], mapper: Mapper, sampler: Sampler, *, by_shape: bool, skip_bad: bool):
        self.records, self.mapper, self.sampler = records, mapper, sampler
        self.by_shape, self.skip_bad = by_shape, skip_bad
        self._groups: dict[int, int] = {}

    def group_of(self, index: int) -> int:
        """1 if images are grouped by shape and this one is broader than high."""
        if not self.by_shape:
            return 0
        if index not in self._groups:
            self._groups[index] = int(_is_broad(self.records[index]))
        return self._groups[index]

    def __getitem__(self, draw: Draw) -> Record:
        if not self.skip_bad:
            return self._make(draw, draw.image, 0)
        bad: list[tuple[int, str]] = []
        for attempt, index in enumerate(self._indices(draw)):
            try:
                example = self._make(draw, index, attempt)
            except BadImageError as error:
                bad.append((index, str(error)))
                continue
            return {**example, _BAD_IMAGES: bad} if bad else example
        raise InputError(
            f"{len(bad)} training images in a row cannot be used, the last of them: {bad[-1][1]} Check the dataset "
            "(python -m maskformer.tools.check_dataset); DATALOADER.ON_BAD_IMAGE skips only single ones."
        )

    def _indices(self, draw: Draw) -> Iterator[int]:
        """An image and what may stand in for it, ``MAX_ATTEMPTS`` at most."""
        yield draw.image
        others = itertools.islice(self.sampler.replacements(draw), 100 * MAX_ATTEMPTS)
        alike = (index for index in others if self.group_of(index) == self.group_of(draw.image))
        yield from itertools.islice(alike, MAX_ATTEMPTS - 1)

    def _make(self, draw: Draw, index: int, attempt: int) -> Record:
        with seeded(augmentation_seeds(self.sampler.seed, draw, attempt)):
            return self.mapper(self.records[index])


class TrainLoader:
    """Batches without end. The same seed gives the same ones, whatever the number of workers and of restarts.

    Args:
        records: the dataset's entry of each image.
        mapper: makes an example of an entry.
        sampler: which image comes when.
        batch_size: examples in a batch, that is in this process.
        num_workers: processes that make examples; 0: this one does.
        group_by_shape: whether all images of a batch are broader than high, or none (Detectron2's aspect ratio groups).
        rank: of this process.
        world_size: number of processes that train.
        max_bad_images: how many different images may be unusable; None: none, the first one's error is raised.

    Attributes:
        worker_init_fn: what each worker calls first with its number, as in ``DataLoader``.
    """

    def __init__(
        self,
        records: list[Record],
        mapper: Mapper,
        sampler: Sampler,
        *,
        batch_size: int,
        num_workers: int = 0,
        group_by_shape: bool = False,
        rank: int = 0,
        world_size: int = 1,
        max_bad_images: int | None = None,
    ):
        self.worker_init_fn: Callable[[int], None] | None = None
        self.bad_images: set[int] = set()
        self.max_bad_images = max_bad_images
        shared = DatasetFromList(records, copy=False)  # one copy for all workers
        skip_bad = max_bad_images is not None
        self._examples = Examples(shared, mapper, sampler, by_shape=group_by_shape, skip_bad=skip_bad)
        self._batch_size, self._num_workers = batch_size, num_workers
        self._rank, self._world_size = rank, world_size
        self._position = Position()

    def __iter__(self) -> Iterator[list[Record]]:
        """Go on from the position; there is one such iteration at a time."""
        positions: deque[Position] = deque()
        loader = DataLoader(
            self._examples,
            batch_sampler=self._batches(positions),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=self.worker_init_fn,
            generator=torch.Generator(),  # else each iteration would draw from the process's own
        )
        for batch in loader:
            self._position = positions.popleft()
            for example in batch:
                self._note_bad(example.pop(_BAD_IMAGES, ()))
            yield batch

    def _batches(self, positions: deque[Position]) -> Iterator[list[Draw]]:
        """The draws of each batch of this process; the position after it is noted, for when it has been made."""
        batches = self._examples.sampler.batches(self._position, self._batch_size, self._examples.group_of)
        for draws, position in shard(batches, self._rank, self._world_size):
            positions.append(position)
            yield draws

    def _note_bad(self, reports: Sequence[tuple[int, str]]) -> None:
        for index, message in reports:
            if index not in self.bad_images:
                self.bad_images.add(index)
                logger.warning("Training goes on without an image, %d so far: %s", len(self.bad_images), message)
        self.check_bad_images(self.bad_images)

    def check_bad_images(self, bad_images: set[int]) -> None:
        """Stop a training that loses too many images, by their indices, also of what other processes met.

        Raises:
            InputError: they are more than ``max_bad_images``.
        """
        if self.max_bad_images is not None and len(bad_images) > self.max_bad_images:
            raise InputError(
                f"{len(bad_images)} training images cannot be used (each is named in the log); "
                f"DATALOADER.MAX_BAD_IMAGES is {self.max_bad_images}: repair or remove them, or raise it."
            )

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is after the last batch handed out; all processes agree, but for the bad images met."""
        return {
            "seed": self._examples.sampler.seed,
            "num_images": len(self._examples.records),
            "bad_images": sorted(self.bad_images),
            **self._position.to_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: to be called before iteration starts."""
        sampler = self._examples.sampler
        if state["seed"] != sampler.seed:
            logger.info("The order of images goes on with the seed %d of the run that is resumed.", state["seed"])
        self._examples.sampler = dataclasses.replace(sampler, seed=state["seed"])
        position = Position.from_state(state)
        num_images = len(self._examples.records)
        if state["num_images"] != num_images:
            logger.warning(
                "The run that is resumed had %d training images, this one has %d: it goes on at the start of epoch %d.",
                state["num_images"], num_images, position.epoch,
            )  # fmt: skip
            self._position = Position(position.epoch)
            return
        self._position = position
        self.bad_images = set(state["bad_images"])


@contextlib.contextmanager
def seeded(seeds: Sequence[int]) -> Iterator[None]:
    """Seed Python's, NumPy's and PyTorch's generators of the host, with 32 bits each, and leave them as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])  # torch.manual_seed would seed devices as well
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _is_broad(record: Record) -> bool:
    """Whether an image is broader than high, by what the dataset says or else by the head of the file."""
    if "width" in record and "height" in record:
        return record["width"] > record["height"]
    try:
        height, width = picture_size(record["file_name"], record.get("bands"))
    except InputError:  # the mapper will say what is wrong with it
        return False
    return width > height
