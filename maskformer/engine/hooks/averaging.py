"""Averages of a training's state: of the weights over steps (EMA), and of batch norm's statistics over processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from maskformer.checkpoint.checkpointer import model_content
from maskformer.files import save_checkpoint
from maskformer.runs.output_folder import tell

from ..non_finite import running_statistics

logger = logging.getLogger(__name__)

FILE_NAME = "model_ema.pth"


class WeightAverage(HookBase):
    """Averages the weights after each step of the optimiser, on their device and in float32; buffers are copied.

    average <- d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)) at the t-th update, counted from
    0, so that the beginning of a training is soon forgotten. When a training ends, the average is written to
    ``model_ema.pth``: weights and classes alone, which everything that loads weights loads.

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
            for average, weight in zip(self._averages, self._weights, strict=True):
                average.copy_(weight.detach())

    def after_train(self) -> None:
        """Write the average, in the process that writes."""
        if not comm.is_main_process() or self._updates == 0:
            return
        path = os.path.join(self._folder, FILE_NAME)
        try:
            with self.in_place():
                save_checkpoint(model_content(self._model), path)
        except OSError as error:
            tell(f"{error}; the checkpoints hold the average nevertheless.")

    @torch.no_grad()
    def _update(self, *_: Any) -> None:
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        weights = [weight.detach().float() for weight in self._weights]
        get_ema_multi_avg_fn(decay)(self._averages, weights, self._updates)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In the ``with`` block, the model has the average as its weights."""
        weights = [weight.data for weight in self._weights]
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.data = average
        try:
            yield
        finally:
            for weight, value in zip(self._weights, weights, strict=True):
                weight.data = value

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


@torch.no_grad()
def share_state(model: nn.Module) -> None:
    """Give all processes the same weights and buffers, to be evaluated or saved; each of them has to ask.

    Running means and variances, which each process keeps of its own images, become their mean over processes: what one
    process would have of that many times more batches. It is linear as their updates are, so that it does not matter
    when and how often it is taken, and a run that was stopped has the statistics of one that was not. A pooled variance
    would depend on it; and it is not what batch norm divides by in training, the variance within a process's images. Of
    everything else, rank 0's is taken, which is what checkpoints hold.

    Args:
        model: its ``running_statistics`` become means, the counts of batches left out.
    """
    if comm.get_world_size() == 1:
        return
    statistics = {id(buffer) for buffer in running_statistics(model) if buffer.is_floating_point()}
    for tensor in (*model.parameters(), *model.buffers()):
        # Process groups ask for contiguous tensors, and gloo has no booleans.
        sent = tensor.int() if tensor.dtype == torch.bool else tensor.detach()
        value = sent.clone(memory_format=torch.contiguous_format)
        distributed.broadcast(value, src=0)
        if id(tensor) in statistics:
            difference = tensor - value  # exactly 0 where processes agree already
            distributed.all_reduce(difference)
            value += difference / comm.get_world_size()
        tensor.copy_(value)


def explain_batch_norm(cfg: CfgNode, model: nn.Module) -> None:
    """Say in the log that several processes train otherwise than one, where batch norm sees the images of one alone."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # nn.SyncBatchNorm and frozen ones are none of these
    names = [name for name, module in model.named_modules() if isinstance(module, kinds) and module.training]
    names = [name for name in names if not isinstance(model.get_submodule(name), NaiveSyncBatchNorm)]
    if comm.get_world_size() == 1 or not names:
        return
    parts = [part for part, node in cfg.MODEL.items() if isinstance(node, CfgNode) and node.get("NORM") == "BN"]
    if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" and any(name.startswith("backbone.") for name in names):
        parts.append("TIMM")  # whose NORM "" leaves batch norms as they are
    synchronised = "SyncBN"
    if cfg.MODEL.DEVICE == "cpu":  # PyTorch's, all that timm has, is for accelerators alone
        synchronised = "SyncBN on an accelerator" if "TIMM" in parts else "naiveSyncBN"
    logger.warning(
        "Batch norm in %d layers (%s, ...) sees the images of its process alone, so that losses and scores of %d "
        "processes differ from those of one. To normalise over the images of all, set %s to %s.",
        len(names), names[0], comm.get_world_size(),
        " and ".join(f"MODEL.{part}.NORM" for part in parts) or "these layers", synchronised,
    )  # fmt: skip
