"""Training and evaluation: trainer, optimiser, devices, command line."""

from maskformer.runs.launch import build_argument_parser

from .accelerator import resolve_device
from .optimizer import build_optimizer
from .setup import run, setup
from .trainer import Trainer

__all__ = ["Trainer", "build_argument_parser", "build_optimizer", "resolve_device", "run", "setup"]
