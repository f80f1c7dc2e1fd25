"""What a GPU does in eight minutes: a training step, images a second, and a folder from disk to disk.

    python -m benchmarks.gpu [--device cuda] [--seconds 450] [--quick]

All in one process, the most wanted first; what no time is left for is named and left out. Times are medians between
waits for the device. Hugging Face's model ends in its own post-processing, at a lower resolution where it has one.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.workloads import inference, training
from benchmarks.workloads.models import build_ours, draw_segment_map, load_recipe
from maskformer.engine.accelerator import Accelerator, resolve_device
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError
from maskformer.tools import predict

R50 = "ade20k-150/maskformer_R50_bs16_160k.yaml"
SEMANTIC, PANOPTIC, SQUARE = (512, 683), (800, 1216), (640, 640)
MODELS: dict[str, tuple[str, str, tuple[int, int]]] = {
    "R50 512 x 683 semantic": (R50, "labels", SEMANTIC),
    "R50 800 x 1216 panoptic": ("coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml", "panoptic", PANOPTIC),
    "Swin-T 512 x 683 semantic": ("ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml", "labels", SEMANTIC),
    "Mask2Former R50 800 x 1216 panoptic": (
        "mask2former/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        "panoptic",
        PANOPTIC,
    ),
    "EoMT-S 640 x 640 panoptic": ("eomt/coco_panoptic_small_640.yaml", "panoptic", SQUARE),
    "EoMT-L 640 x 640 panoptic": ("eomt/coco_panoptic_large_640.yaml", "panoptic", SQUARE),
}
BF16 = ["MODEL.PRECISION", "bfloat16"]
OURS = {
    "eager, float32": [],
    "eager, TF32": [],
    "eager, BF16": BF16,
    "compiled, BF16": [*BF16, "MODEL.COMPILE", "default"],
    "max-autotune, BF16": [*BF16, "MODEL.COMPILE", "max-autotune"],
    "compiled, TF32": ["MODEL.COMPILE", "default"],
}
THEIRS = {"Hugging Face, float32": False, "Hugging Face, TF32": False, "Hugging Face, BF16": True}
SECONDS_EACH, MOST_UNITS = 2.0, 50
TARGETS = {"R50 512 x 683 semantic": "at least 200 images/s", "training step": "at most 60 ms"}


@dataclass(frozen=True)
class Measurement:
    """A row of the table.

    Attributes:
        what: a model, a step or a folder.
        way: how it is run.
        measure: does it and says what came out.
    """

    what: str
    way: str
    measure: Callable[[], str]


def plan(device: str, *, quick: bool) -> Iterator[Measurement]:
    """All measurements, the most wanted first.

    Args:
        device: what ``resolve_device`` gave.
        quick: tiny networks and images: shows that all runs, measures nothing.
    """
    first, *others = MODELS
    yield from _plan_model(first, device, quick=quick)
    for way, mode in {"eager": "none", "compiled": "default", "max-autotune": "max-autotune"}.items():
        yield Measurement("training step", f"{way}, BF16", partial(_time_step, mode, device, quick=quick))
    for way in ("eager, BF16", "compiled, BF16"):
        yield Measurement("folder, R50", way, partial(_time_folder, OURS[way], device, quick=quick))
    for name in others:
        yield from _plan_model(name, device, quick=quick)


def _plan_model(name: str, device: str, *, quick: bool) -> Iterator[Measurement]:
    recipe, task, size = MODELS[name]
    options: dict[str, Any] = {
        "recipe": recipe,
        "task": task,
        "size": (64, 64) if quick else size,
        "device": device,
        "tiny": quick,
    }
    for way, keys in OURS.items():
        set_up = partial(inference.set_up_ours, **options, keys=keys)
        yield Measurement(name, way, partial(_time_images, set_up, device, tf32="TF32" in way))
    peer = inference.set_up_hugging_face_eomt if "EoMT" in name else inference.set_up_hugging_face
    for way, half in THEIRS.items():
        set_up = partial(peer, **options, half=half)
        yield Measurement(name, way, partial(_time_images, set_up, device, tf32="TF32" in way))


def _time_images(set_up: Callable[[], Callable[[], Any]], device: str, *, tf32: bool) -> str:
    with _products_in_tf32(tf32):
        seconds = _median(set_up(), device)
    return f"{1 / seconds:.1f} images/s"


def _time_step(mode: str, device: str, *, quick: bool) -> str:
    batch, size = (2, (64, 64)) if quick else (16, (512, 512))
    unit = training.set_up_ours(
        recipe=R50,
        precision="bfloat16",
        size=size,
        batch=batch,
        device=device,
        tiny=quick,
        keys=["MODEL.COMPILE", mode],
    )
    return f"{1000 * _median(unit, device):.1f} ms"


def _median(unit: Callable[[], Any], device: str) -> float:
    """Seconds of a unit, the first ones left out, in which a compiler works."""
    accelerator = Accelerator(device)
    times: list[float] = []
    for _ in range(3):
        unit()
    accelerator.synchronize()
    while not times or (sum(times) < SECONDS_EACH and len(times) < MOST_UNITS):
        begin = time.perf_counter()
        unit()
        accelerator.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _time_folder(keys: Sequence[str], device: str, *, quick: bool) -> str:
    """Images a second of ``predict``, disk to disk; what starting takes is what few pictures take."""
    few, many = (2, 12) if quick else (8, 136)
    cfg = load_recipe(R50, "cpu", tiny=quick)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save({"model": build_ours(cfg).state_dict()}, folder / "model.pth")
        Path(folder, "config.yaml").write_text(cfg.dump(), encoding="utf-8")
        seconds = []
        for count in (1, few, many):  # the first imports what drawing needs
            _draw_pictures(folder / str(count), count, (64, 64) if quick else SEMANTIC)
            arguments = ["--config-file", folder / "config.yaml", "--weights", folder / "model.pth", "--device", device]
            arguments += ["--input", folder / str(count), "--output", folder / f"{count}_drawn", "--task", "semantic"]
            begin = time.perf_counter()
            if predict.main([*map(str, arguments), *keys]) != 0:
                raise RuntimeError("predict failed")
            seconds.append(time.perf_counter() - begin)
    return f"{(many - few) / (seconds[2] - seconds[1]):.1f} images/s"


def _draw_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir()
    for seed in range(count):
        regions = draw_segment_map(20, size, seed).long()
        colours = torch.randint(256, (21, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        Image.fromarray(colours[regions].numpy()).save(folder / f"{seed:03d}.jpg", quality=90)


@contextmanager
def _products_in_tf32(wanted: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def run(device: str, *, seconds: float, quick: bool) -> int:
    """Measure and print row by row; returns the exit code: 1 if a measurement failed."""
    begin, failed, left_out = time.perf_counter(), 0, []
    machine = describe_machine(device)
    print(", ".join(f"{key} {machine[key]}" for key in ("device", "commit", "PyTorch", "transformers")), flush=True)
    print("| what | how | measured | target |\n|---|---|---|---|", flush=True)
    for measurement in plan(device, quick=quick):
        if time.perf_counter() - begin > seconds:
            left_out.append(f"{measurement.what} ({measurement.way})")
            continue
        try:
            result = measurement.measure()
        except Exception as error:  # the next ones are worth having
            failed += 1
            result = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        target = "" if "Hugging Face" in measurement.way else TARGETS.get(measurement.what, "")
        print(f"| {measurement.what} | {measurement.way} | {result} | {target} |", flush=True)
        torch.compiler.reset()
        gc.collect()
        Accelerator(device).release_unused_memory()
    if left_out:
        print(f"no time was left for: {'; '.join(left_out)}")
    print(f"{time.perf_counter() - begin:.0f} s")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto", help="as MODEL.DEVICE (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=450, help="nothing is begun after (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, measures nothing")
    args = parser.parse_args(arguments)
    try:
        return run(resolve_device(args.device), seconds=args.seconds, quick=args.quick)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
