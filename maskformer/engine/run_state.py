"""What a run goes on from besides weights, optimiser and schedule, so that nothing tells that it ever stopped."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, has_event_storage

from maskformer.data.loading.train_loader import TrainLoader
from maskformer.files import write_text

from .accelerator import Accelerator
from .hooks.reports import all_bad_images
from .hooks.trackers import Tracker
from .hooks.writers import ResumableWriter

logger = logging.getLogger(__name__)

START_FILE = "run_start.json"
STORED_VALUES = 20  # of each metric: what Detectron2's writers take medians of


class RunState(HookBase):
    """Saves and restores random states, the position in the images, metrics and the lengths of the files of metrics.

    It is the last hook, because what runs before the first step may draw random numbers. A checkpoint is saved in the
    middle of the hooks of an iteration; those after it (evaluation, writers) are then run first in the resumed run.

    Args:
        accelerator: whose random generator is saved too.
        loader: where images come from; another than ours starts anew.
        writers: of this process, by name.
    """

    def __init__(
        self, accelerator: Accelerator, loader: Iterable[Any], writers: Mapping[str, ResumableWriter | Tracker]
    ):
        self.accelerator = accelerator
        self.loader = loader if isinstance(loader, TrainLoader) else None
        self.writers = writers
        self._resumed: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state of all processes; each of them has to ask."""
        loader = self.loader
        return {
            "random": comm.gather(random_states(self.accelerator)),
            "loader": {} if loader is None else {**loader.state_dict(), "bad_images": all_bad_images(loader)},
            "metrics": stored_metrics(self.trainer.storage) if has_event_storage() else {},
            "writers": {name: writer.state_dict() for name, writer in self.writers.items()},
            "saved_by": getattr(self.trainer, "running_hook", ""),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to the position in the images; the rest is restored when the training starts."""
        if self.loader is not None and state["loader"]:
            self.loader.load_state_dict(state["loader"])
        self._resumed = state

    def note_start(self, folder: str, resume: bool) -> None:
        """At a start without a checkpoint: drop what a run wrote here that was stopped before it had saved one.

        Args:
            folder: of the run; a file in it says how long the files of metrics were when the run began.
            resume: whether the run goes on with an earlier one.
        """
        path = os.path.join(folder, START_FILE)
        if resume and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                self._restore_writers(json.load(file))
        elif self.writers:
            os.makedirs(folder, exist_ok=True)
            write_text(path, json.dumps({name: writer.state_dict() for name, writer in self.writers.items()}))

    def before_train(self) -> None:
        """Restore, and finish the iteration in which the checkpoint was saved."""
        state, self._resumed = self._resumed, None
        if state is None:
            if self.trainer.start_iter:
                logger.warning("The checkpoint is of an earlier version: images and random numbers start anew.")
            return
        states, world_size, rank = state["random"], comm.get_world_size(), comm.get_rank()
        if len(states) != world_size:
            logger.warning(
                "The run that is resumed had %d processes, this one has %d: the images of each step stay the same, but "
                "random numbers (dropout) do not.",
                len(states), world_size,
            )  # fmt: skip
        if rank < len(states):
            set_random_states(states[rank], self.accelerator)
        restore_metrics(self.trainer.storage, state["metrics"])
        self._restore_writers(state["writers"])
        self.trainer.finish_iteration(state["saved_by"])

    def _restore_writers(self, states: Mapping[str, dict[str, Any]]) -> None:
        for name in self.writers.keys() & states.keys():
            self.writers[name].load_state_dict(states[name])


def random_states(accelerator: Accelerator) -> dict[str, Any]:
    """The states of this process's random generators, as plain containers and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        **accelerator.random_states(),
    }


def set_random_states(states: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Go on from what ``random_states`` gave; a device of another kind keeps its own."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    accelerator.set_random_states(states)


def stored_metrics(storage: EventStorage) -> dict[str, Any]:
    """The latest values of each metric, as plain containers and tensors."""
    hints = storage.smoothing_hints()
    return {
        name: {
            "values": torch.tensor([value for value, _ in history.values()[-STORED_VALUES:]], dtype=torch.float64),
            "iterations": torch.tensor([int(iteration) for _, iteration in history.values()[-STORED_VALUES:]]),
            "smoothed": hints[name],
        }
        for name, history in storage.histories().items()
    }


def restore_metrics(storage: EventStorage, metrics: Mapping[str, Any]) -> None:
    """Put what ``stored_metrics`` gave into a storage."""
    for name, metric in metrics.items():
        for value, iteration in zip(metric["values"].tolist(), metric["iterations"].tolist()):
            storage.put_scalar(name, value, smoothing_hint=metric["smoothed"], cur_iter=iteration)
