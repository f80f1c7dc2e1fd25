#!/usr/bin/env python
"""Train or evaluate MaskFormer: python train_net.py --config-file FILE [--eval-only] [--resume] KEY VALUE ..."""

from __future__ import annotations

import sys

from maskformer.engine import build_argument_parser, run
from maskformer.engine.commands import train_or_evaluate as main

if __name__ == "__main__":
    sys.exit(run(main, build_argument_parser().parse_args()))
