"""What smaller numbers cost an exported model: size, time and mIoU of a file in each precision.

    python -m benchmarks.exported --config-file FILE --weights FILE --calibration FOLDER [KEY VALUE ...]

The dataset is that of DATASETS.TEST, measured by the evaluator that measures the model itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from torch import nn

import maskformer
from benchmarks.machine import describe_machine
from maskformer.engine.test_time import inference_options
from maskformer.predictor import CHANNEL_ORDERS, Predictor, load
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError

PRECISIONS = ("float32", "float16", "int8")


class ExportedModel(nn.Module):
    """A semantic ONNX file where evaluation has a model.

    Args:
        file: of the task "semantic".
        channel_order: which channel of the evaluation's images is red, green and blue.

    Attributes:
        seconds: of one processor that each picture took, which other programs on the machine change little.
    """

    def __init__(self, file: Path, channel_order: Sequence[int] = (0, 1, 2)):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options)
        self.channel_order = list(channel_order)
        self.seconds: list[float] = []

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Label maps, of the sizes that evaluation asks for."""
        results = []
        for example in batched_inputs:
            pictures = np.ascontiguousarray(example["image"].numpy()[None, self.channel_order])
            begin = time.process_time()
            (labels,) = self.session.run(["labels"], {"images": pictures})
            self.seconds.append(time.process_time() - begin)
            size = example.get("height", labels.shape[1]), example.get("width", labels.shape[2])
            resized = nn.functional.interpolate(torch.from_numpy(labels)[None].float(), size)[0, 0]
            results.append({"sem_seg": resized.int()})
        return results


def measure(model: nn.Module, cfg: CfgNode) -> float:
    """The mIoU, in percent, on the first dataset of DATASETS.TEST, of a model or an ``ExportedModel``.

    Args:
        model: gives semantic results.
        cfg: of the model.
    """
    cfg = cfg.clone()
    cfg.defrost()
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON = True, False, False
    (name, *_) = cfg.DATASETS.TEST
    loader = maskformer.Trainer.build_test_loader(cfg, name)
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        with inference_options(model, semantic_on=True, panoptic_on=False, instance_on=False, semantic_as_labels=True):
            results = inference_on_dataset(model, loader, maskformer.Trainer.build_evaluator(cfg, name))
    return float(results["sem_seg"]["mIoU"])


def measure_all(predictor: Predictor, source: str, calibration: str, keys: dict[str, Any], folder: Path) -> list[str]:
    """Rows of a table: precision, megabytes, milliseconds a picture, mIoU, and the largest share of other labels.

    Args:
        predictor: the model itself.
        source: what it was loaded from, as the others.
        calibration: folder of pictures.
        keys: changes of the configuration.
        folder: where the files go.
    """
    cfg = predictor.cfg
    assert cfg is not None
    rows = [f"| the model itself | | | {measure(predictor.model, cfg):.2f} | |"]
    for precision in PRECISIONS:
        exported = maskformer.export(
            source,
            folder / f"{precision}.onnx",
            cfg.MODEL.WEIGHTS,
            task="semantic",
            precision=precision,
            calibration=calibration if precision == "int8" else None,
            **keys,
        )
        model = ExportedModel(exported.file, CHANNEL_ORDERS[cfg.INPUT.FORMAT])
        score, megabytes = measure(model, cfg), exported.file.stat().st_size / 1e6
        labels = max(each.labels for each in exported.proof)
        milliseconds = 1000 * float(np.median(model.seconds))
        rows.append(f"| {precision} | {megabytes:.1f} MB | {milliseconds:.1f} ms | {score:.2f} | {labels:.2%} |")
    return rows


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exported", description=__doc__.split("\n")[0])
    parser.add_argument("--config-file", required=True, metavar="FILE", help="as for maskformer.tools.export")
    parser.add_argument("--weights", metavar="FILE", help="as for maskformer.tools.export")
    parser.add_argument("--calibration", required=True, metavar="FOLDER", help="of pictures, for int8")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    args = build_parser().parse_args(arguments)
    keys = dict(zip(args.opts[::2], args.opts[1::2]))
    try:
        predictor = load(args.config_file, args.weights, device="cpu", **keys)
        with tempfile.TemporaryDirectory() as folder:
            rows = measure_all(predictor, args.config_file, args.calibration, keys, Path(folder))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    machine = describe_machine("cpu")
    print(", ".join(machine[key] for key in ("date", "commit", "processor")))
    print("\n".join(["| precision | file | time | mIoU | other labels |", "|---|---|---|---|---|", *rows]))
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
