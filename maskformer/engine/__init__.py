"""Training and evaluation: trainer, optimiser, devices, command line."""

from maskformer.engine.accelerator import resolve_device
from maskformer.engine.optimizer import build_optimizer
from maskformer.engine.trainer import Trainer
from maskformer.runs.launch import build_argument_parser, run, setup

__all__ = ["Trainer", "build_argument_parser", "build_optimizer", "resolve_device", "run", "setup"]
