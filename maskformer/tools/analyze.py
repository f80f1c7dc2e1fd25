"""Counts a model: ``python -m maskformer.tools.analyze --config-file FILE [--size 512 512]``.

Parameters, multiply-adds and what is kept for a backward pass (without dropout), for one image, in total and by
module. It is the network of the paper, which training runs and export takes; the model's own prediction multiplies
the last convolution's filters with the mask embeddings first, where that is less arithmetic. The network runs on
PyTorch's meta device: that takes seconds and no memory, and gives the same numbers everywhere. Published "FLOPs" of
segmentation models are multiply-adds.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskformer.config import load_config
from maskformer.meta_arch import MaskClassifier
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError

FLOPS_OF_A_MULTIPLY_ADD = 2


@dataclass(frozen=True)
class Cost:
    """What one module, with all inside it, costs; "" is the name of the whole network.

    Multiply-adds are of convolutions, matrix products and bilinear samples (deformable attention); bytes are kept for
    the backward pass, beside parameters.
    """

    name: str
    parameters: int
    multiply_adds: int
    saved_bytes: int


class PerPixelNetwork(nn.Module):
    """Backbone and head of a per-pixel baseline, from normalised images to scores."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone: nn.Module = model.backbone  # type: ignore[assignment]
        self.sem_seg_head: nn.Module = model.sem_seg_head  # type: ignore[assignment]

    def forward(self, images: Tensor) -> object:
        """Run both on (B,3,H,W)."""
        return self.sem_seg_head(self.backbone(images))


def analyze(cfg: CfgNode, size: tuple[int, int], depth: int = 2) -> list[Cost]:
    """Count the network that a configuration describes.

    Args:
        cfg: the whole config.
        size: (height, width) of the one image.
        depth: how deep modules are listed; 0: only the whole.

    Returns:
        The whole network first, then its modules in order.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
        network: Any = model.network if isinstance(model, MaskClassifier) else PerPixelNetwork(model)
        network.eval()  # a head in training mode may want labels
    modules = {name: module for name, module in network.named_modules() if name == "" or name.count(".") < depth}
    images = torch.empty(1, 3, *size, device="meta")
    flops = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.grid_sampler_2d: _flops_of_samples})
    with flops, _by_module(network, flops) as (products, saved):
        network(images)
    return [
        Cost(
            name=name,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            multiply_adds=_inside(name, products) // FLOPS_OF_A_MULTIPLY_ADD,
            saved_bytes=_inside(name, saved),
        )
        for name, module in modules.items()
    ]


def _flops_of_samples(*_: object, out_shape: Sequence[int], **__: object) -> int:
    """Of bilinear samples: each is a sum of four values, weighted."""
    return 4 * FLOPS_OF_A_MULTIPLY_ADD * math.prod(out_shape)


def _inside(parent: str, counts: Counter[str]) -> int:
    return sum(n for name, n in counts.items() if parent in ("", name) or name.startswith(f"{parent}."))


@contextmanager
def _by_module(network: nn.Module, flops: FlopCounterMode) -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Floating-point operations, and bytes that autograd keeps, by the innermost module at work.

    By its name, wherever it is called: the pixel decoder's last convolution is called by the head. A storage counts
    once.
    """
    products: Counter[str] = Counter()
    saved: Counter[str] = Counter()
    seen = {parameter.untyped_storage() for parameter in network.parameters()}
    at_work = [""]
    handles = []

    def count() -> None:
        products[at_work[-1]] += flops.get_total_flops() - products.total()

    def enter(name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            count()
            at_work.append(name)

        return note

    def leave(*_: object) -> None:
        count()
        at_work.pop()

    for name, module in network.named_modules():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in seen:
            seen.add(storage)
            saved[at_work[-1]] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield products, saved
    for handle in handles:
        handle.remove()


def format_table(costs: list[Cost]) -> str:
    """The costs as a table for people."""
    rows = [
        (
            cost.name or "all",
            f"{cost.parameters / 1e6:.2f} M",
            f"{cost.multiply_adds / 1e9:.2f} G",
            f"{cost.saved_bytes / 2**20:.1f} MB",
        )
        for cost in costs
    ]
    headers = ("module", "parameters", "multiply-adds", "kept for backward")
    return tabulate(rows, headers, tablefmt="plain", colalign=("left", "right", "right", "right"))


def format_row(file: str, whole: Cost) -> str:
    """One model as a row of the table of recipes (docs/train.md)."""
    return f"| `{file}` | {whole.parameters / 1e6:.1f} M | {whole.multiply_adds / 1e9:.1f} G |"


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m maskformer.tools.analyze", description=__doc__.split(":")[0])
    parser.add_argument(
        "--config-file", required=True, nargs="+", metavar="FILE", help="several: a row of a Markdown table for each"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--depth", type=int, default=2, help="how deep modules are listed (default: %(default)s)")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="changes of the configuration")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    args = build_parser().parse_args(arguments)
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    try:
        for file in args.config_file:
            costs = analyze(load_config(file, args.opts), tuple(args.size), args.depth)
            if len(args.config_file) > 1:
                print(format_row(file, costs[0]), flush=True)
            else:
                print(f"{file}, one image of {args.size[0]} x {args.size[1]}")
                print(format_table(costs))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
