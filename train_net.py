#!/usr/bin/env python
"""Train or evaluate MaskFormer: python train_net.py --config-file FILE [--eval-only] [--resume] KEY VALUE ..."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from detectron2.utils import comm

from maskformer.checkpoint import Checkpointer
from maskformer.engine import Trainer, build_argument_parser, run, setup
from maskformer.evaluation import check_expected_results


def main(args: argparse.Namespace) -> Any:
    """Do what the command line asks for, in one process.

    Args:
        args: what ``build_argument_parser`` parsed.

    Returns:
        Scores by task and metric, where something was evaluated.
    """
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Checkpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            check_expected_results(cfg.TEST.EXPECTED_RESULTS, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    sys.exit(run(main, build_argument_parser().parse_args()))
