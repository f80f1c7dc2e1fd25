"""Prints, as one JSON line, where one training step computed: ``report_step.py CONFIG KEY VALUE ...``.

``device`` counts the operators on the emulated device (backend.cpp), ``host`` those that PyTorch dispatched with
nothing but tensors of the CPU, where one of them holds more than one floating-point number; views left out.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch_sdaa
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskformer.config import load_config
from maskformer.data.datasets import register_all
from maskformer.engine import Trainer


class HostOperators(TorchDispatchMode):
    """Counts computations on tensors of the CPU."""

    def __init__(self):
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.view.default:  # under a mode, PyTorch's reshape views too, which the device refuses
            return args[0].reshape(args[1])
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        on_host = tensors and all(tensor.device.type == "cpu" for tensor in tensors)
        if (
            on_host
            and not func.is_view
            and any(tensor.is_floating_point() and tensor.numel() > 1 for tensor in tensors)
        ):
            self.counts[str(func)] = self.counts.get(str(func), 0) + 1
        return result


def main() -> None:
    register_all(os.environ["DETECTRON2_DATASETS"])
    trainer = Trainer(load_config(sys.argv[1], sys.argv[2:]))
    step = trainer._trainer
    step.iter = 0
    with EventStorage(0):
        step.run_step()  # starts the loader and fills the optimiser
        backend = torch_sdaa.load_backend()
        backend.reset_operator_counts()
        with HostOperators() as host:
            step.run_step()
    parameters = sum(parameter.device.type == "sdaa" for parameter in step.model.parameters())
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in step.model.modules())
    report = {
        "device": backend.operator_counts(),
        "host": host.counts,
        "parameters": [parameters, len(list(step.model.parameters()))],
        "convolutions": convolutions,
    }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
