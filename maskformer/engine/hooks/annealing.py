"""Mask annealing: EoMT gives up masked attention while it trains, block by block."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from maskformer.meta_arch import EoMT
from maskformer.modeling import EoMTNetwork

logger = logging.getLogger(__name__)

POWER = 0.9


def masking_probabilities(iteration: int, starts: Sequence[int], ends: Sequence[int]) -> list[float]:
    """How probably a query is masked in each block: 1 up to its start, 0 from its end, and a polynomial between.

    Args:
        iteration: the step that they are for, from 0.
        starts: an iteration for each block.
        ends: likewise, after ``starts``.

    Returns:
        Numbers of float32, in which the released code computes.

    Source: EoMT (arXiv 2503.19108), "mask annealing".
    """
    start, end = torch.tensor(starts, dtype=torch.float32), torch.tensor(ends, dtype=torch.float32)
    progress = ((iteration - start) / (end - start)).clamp(0, 1)
    return ((1 - progress) ** POWER).tolist()


class MaskAnnealing(HookBase):
    """Tells the network before each step how probably queries are masked in it.

    As in the released code that is said at the end of the step before, so that a checkpoint has the probabilities of
    the step that follows it, and the last one zeros. They follow from the iteration alone, in a resumed run too.

    Args:
        network: of the model, in this process.
        starts: see ``masking_probabilities``; empty: queries are masked in every step.
        ends: likewise.
    """

    def __init__(self, network: EoMTNetwork, *, starts: Sequence[int], ends: Sequence[int]):
        self._network = network
        self._starts = starts
        self._ends = ends

    def before_train(self) -> None:
        """Set those of the first step, or of the one that a resumed run goes on with."""
        self._set(self.trainer.start_iter)
        if self._ends and max(self._ends) > self.trainer.max_iter:
            logger.warning(
                "Masked attention is given up by iteration %d (MODEL.EOMT.ANNEALING_ENDS), and the training ends at %d "
                "(SOLVER.MAX_ITER): inference, which does without, will be worse than it could.",
                max(self._ends), self.trainer.max_iter,
            )  # fmt: skip

    def after_step(self) -> None:
        """Set those of the next step."""
        self._set(self.trainer.iter + 1)

    def _set(self, iteration: int) -> None:
        always = [1.0] * self._network.num_blocks
        self._network.set_masking(masking_probabilities(iteration, self._starts, self._ends) if self._ends else always)


def build_annealing(cfg: CfgNode, model: nn.Module) -> MaskAnnealing | None:
    """What ``MODEL.EOMT`` says; None for a model that masks no attention.

    Args:
        cfg: the whole config.
        model: without what several processes wrap it in.
    """
    if not isinstance(model, EoMT) or not model.network.masked_attention:
        return None
    node = cfg.MODEL.EOMT
    return MaskAnnealing(model.network, starts=node.ANNEALING_STARTS, ends=node.ANNEALING_ENDS)
