"""Panoptic quality."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.evaluation import COCOPanopticEvaluator

logger = logging.getLogger(__name__)

METRICS = [f"{metric}{group}" for group in ("", "_th", "_st") for metric in ("PQ", "SQ", "RQ")]


class PanopticEvaluator(COCOPanopticEvaluator):
    """Detectron2's evaluator, which also survives a dataset where no thing, or no stuff, is annotated or predicted."""

    def evaluate(self) -> dict[str, dict[str, Any]] | None:
        """Panoptic quality of all things, of all stuff, and of both, in percent; on the main process only."""
        try:
            return super().evaluate()
        except ZeroDivisionError:  # panopticapi's mean over no category
            logger.warning("Panoptic quality is undefined: no image has a thing, or none has stuff.")
            return {"panoptic_seg": dict.fromkeys(METRICS, float("nan"))}
