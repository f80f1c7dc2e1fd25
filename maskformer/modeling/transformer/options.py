"""The transformer's options in a configuration, read in one place for encoder and decoder."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode


def layer_options(cfg: CfgNode) -> dict[str, Any]:
    """Keyword arguments that every transformer layer takes: heads, feed-forward width, dropout, pre-norm."""
    node = cfg.MODEL.MASK_FORMER
    return {
        "num_heads": node.NHEADS,
        "dim_feedforward": node.DIM_FEEDFORWARD,
        "dropout": node.DROPOUT,
        "pre_norm": node.PRE_NORM,
    }
