"""A moving average of the weights (EMA): often better than the weights themselves, and measured beside them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from maskformer.checkpoint.files import save_checkpoint
from maskformer.engine.output_folder import tell
from maskformer.structures import InputError

logger = logging.getLogger(__name__)

FILE_NAME = "model_ema.pth"


class WeightAverage(HookBase):
    """Averages the weights after each step of the optimiser, on their device and in float32; buffers are copied.

    average <- d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)) at the t-th update, counted from
    0, so that the beginning of a training is soon forgotten. When a training ends, the average is written to
    ``model_ema.pth``: weights alone, which everything that loads weights loads.

    Args:
        model: may be one that several processes train; each has the same average.
        optimizer: a step that it leaves out (float16 overflow) is not averaged.
        decay: of the average, 0 <= decay < 1.
        folder: of the run.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, decay: float, folder: str):
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._decay = decay
        self._folder = folder
        self._updates = 0
        self._weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._averages = [weight.detach().float().clone() for weight in self._weights]
        optimizer.register_step_post_hook(self._update)

    def before_train(self) -> None:
        """Begin with the weights as they were loaded, unless a training is resumed."""
        if self._updates == 0:
            torch._foreach_copy_(self._averages, [weight.detach() for weight in self._weights])

    def after_train(self) -> None:
        """Write the average, in the process that writes."""
        if not comm.is_main_process() or self._updates == 0:
            return
        path = os.path.join(self._folder, FILE_NAME)
        try:
            with self.in_place():
                save_checkpoint({"model": self._model.state_dict()}, path)
        except OSError as error:
            tell(f"{error}; the checkpoints hold the average nevertheless.")

    @torch.no_grad()
    def _update(self, *_: Any) -> None:
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        get_ema_multi_avg_fn(decay)(
            self._averages, [weight.detach().float() for weight in self._weights], self._updates
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In the ``with`` block, the model has the average as its weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for index, weight in enumerate(self._weights):
            weight.data, self._averages[index] = self._averages[index], weight.data

    def state_dict(self) -> dict[str, Any]:
        """The averages by the names of their parameters, and the number of updates."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        averages = {names[id(weight)]: average for weight, average in zip(self._weights, self._averages)}
        return {"averages": averages, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run."""
        self._updates = state["updates"]
        for name, average in self.state_dict()["averages"].items():
            average.copy_(state["averages"][name])


def build_average(cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer) -> WeightAverage | None:
    """The average that ``SOLVER.EMA`` describes; None if it is off.

    Raises:
        InputError: the decay is out of range.
    """
    ema = cfg.SOLVER.EMA
    if not ema.ENABLED:
        return None
    if not 0 <= ema.DECAY < 1:
        raise InputError(f"SOLVER.EMA.DECAY is {ema.DECAY}, expected 0 or more and below 1.")
    return WeightAverage(model, optimizer, decay=ema.DECAY, folder=cfg.OUTPUT_DIR)
