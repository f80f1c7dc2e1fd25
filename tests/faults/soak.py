"""A training with evaluations that looks at its own memory, descriptors, threads and processes: `make soak`.

    python tests/faults/soak.py --steps 2000 --images 10000

It takes 2,000 steps, then evaluates 10,000 images in a hundred evaluations with a step before each, with two data
workers, on pictures of 64 x 64. The slope of resident memory is that of a straight line (least squares) through the
samples of the second half: before, libraries load, pools fill, and the histories of metrics grow to their bound.
Linux only.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from detectron2.engine import HookBase
from tiny_training import CONFIG, REPOSITORY, TINY
from torch import nn

from maskformer.demo.shapes import generate_shapes
from maskformer.engine import Trainer, build_argument_parser, setup
from maskformer.reports.console import ProgressLine, console_to_log

EVALUATIONS = 100
CHECKPOINTS = 20
LIMIT = 512.0  # KB per 1,000 steps or images: 180 MB in 360,000 steps
SAMPLES = 400  # in each curve
PAGE = os.sysconf("SC_PAGE_SIZE") / 1024


@dataclass(frozen=True)
class Belongings:
    """What a process holds.

    Attributes:
        descriptors: open files, sockets and pipes.
        threads: its own.
        children: processes that it started.
    """

    descriptors: int
    threads: int
    children: int

    @classmethod
    def now(cls) -> Belongings:
        """Those of this process."""
        gc.collect()
        tasks = list(Path("/proc/self/task").iterdir())
        children = {child for task in tasks for child in (task / "children").read_text().split()}
        return cls(len(os.listdir("/proc/self/fd")), len(tasks), len(children))


@dataclass
class Curve:
    """Resident memory over what was done.

    Attributes:
        total: how much there is to do.
        done: at each sample.
        kilobytes: likewise.
    """

    total: int
    done: list[int] = field(default_factory=list)
    kilobytes: list[float] = field(default_factory=list)

    def sample(self, done: int) -> None:
        """Look, where it is time."""
        if done % max(1, self.total // SAMPLES) == 0:
            self.done.append(done)
            self.kilobytes.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE)

    def slope(self) -> float:
        """KB per 1,000, in the second half."""
        done, kilobytes = np.array(self.done), np.array(self.kilobytes)
        late = done > self.total // 2
        return float(1000 * np.polyfit(done[late], kilobytes[late], 1)[0])


class Watch(HookBase):
    """Samples memory at every step, and at every image that is evaluated."""

    def __init__(self, steps: Curve, images: Curve, progress: ProgressLine):
        self.steps, self.images, self._progress = steps, images, progress
        self._num_images = 0

    def before_train(self) -> None:
        """Watch the model too."""
        self._handle = self.trainer.model.register_forward_hook(self._after_model)

    def after_step(self) -> None:
        """A step is done."""
        self.steps.sample(self.trainer.iter + 1)
        self._progress.advance(note=f"{self.steps.kilobytes[-1] / 1024:.0f} MB" if self.steps.kilobytes else "")

    def after_train(self) -> None:
        """Leave the model alone."""
        self._handle.remove()

    def _after_model(self, model: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        if not model.training:
            for _ in inputs[0]:
                self._num_images += 1
                self.images.sample(self._num_images)
                self._progress.advance(note=f"{self._num_images} images")


@dataclass(frozen=True)
class Soak:
    """What was seen.

    Attributes:
        steps: memory in training.
        images: memory in evaluation.
        before: what the process held after a short training.
        after: and at the end.
    """

    steps: Curve
    images: Curve
    before: Belongings
    after: Belongings


WARM_UP = 20  # steps, and pictures to train with, which are also evaluated before the soak


def train(
    output: Path, steps: int, *, rounds: int, round_images: int, console: TextIO, note: str, split: str = "val"
) -> tuple[Curve, Curve]:
    """Train in this process; after each round of steps comes a checkpoint and, if it has images, an evaluation."""
    options = [
        *TINY, "OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", str(steps), "TEST.EVAL_PERIOD", str(steps // rounds),
        "SOLVER.CHECKPOINT_PERIOD", str(steps // rounds),
        "DATASETS.TEST", f"('shapes_panoptic_{split}',)" if round_images else "()",
        "DATALOADER.NUM_WORKERS", "2", "TEST.DETECTIONS_PER_IMAGE", "10",
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0",
    ]  # fmt: skip
    cfg = setup(build_argument_parser().parse_args(["--config-file", str(REPOSITORY / CONFIG), *options]))
    curves = Curve(steps), Curve(rounds * round_images)
    with ProgressLine(note, steps + rounds * round_images, unit="steps and images", stream=console) as progress:
        trainer = Trainer(cfg)
        trainer.register_hooks([Watch(*curves, progress)])
        trainer.resume_or_load(resume=False)
        trainer.train()
    return curves


def soak(folder: Path, steps: int, images: int, console: TextIO) -> Soak:
    """Warm up with a short training, then look at a long one.

    Args:
        folder: data and outputs go there.
        steps: of training.
        images: to evaluate; a multiple of the number of evaluations, which is ``EVALUATIONS`` from 2,000 images on.
        console: where progress is shown.
    """
    os.environ["DETECTRON2_DATASETS"] = str(folder)
    evaluations = max(min(EVALUATIONS, images // 20), 1)
    generate_shapes(folder, num_train=WARM_UP, num_val=images // evaluations, image_size=(64, 64), seed=0)
    go = functools.partial(train, folder / "output", console=console)
    go(WARM_UP, rounds=1, round_images=WARM_UP, note="Warming up", split="train")
    before = Belongings.now()
    in_training, _ = go(steps, rounds=min(CHECKPOINTS, steps), round_images=0, note="Training")
    _, in_evaluation = go(evaluations, rounds=evaluations, round_images=images // evaluations, note="Evaluating")
    return Soak(in_training, in_evaluation, before, Belongings.now())


def report(seen: Soak) -> list[str]:
    """Lines for people."""
    lines = []
    for name, curve in (("steps", seen.steps), ("images", seen.images)):
        lines.append(
            f"{curve.total} {name}: resident memory {curve.kilobytes[0] / 1024:.0f} MB at first, "
            f"{max(curve.kilobytes) / 1024:.0f} MB at most, {curve.kilobytes[-1] / 1024:.0f} MB at last; slope in "
            f"the second half {curve.slope():+.0f} KB per 1,000 (limit {LIMIT:.0f})"
        )
    return [*lines, f"before: {seen.before}", f"after:  {seen.after}"]


def main() -> int:
    """The command line; exit code 0 where memory is flat and nothing is left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--samples", metavar="FILE", help="write the samples there, as NumPy's .npz")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="maskformer_soak_") as folder,
        console_to_log(Path(folder, "soak.log")) as console,
    ):
        seen = soak(Path(folder), args.steps, args.images, console)
    print("\n".join(report(seen)))
    if args.samples:
        curves = {"steps": seen.steps, "images": seen.images}
        np.savez(args.samples, **{name: np.array([curve.done, curve.kilobytes]) for name, curve in curves.items()})
    is_flat = max(seen.steps.slope(), seen.images.slope()) <= LIMIT
    return 0 if is_flat and seen.after == seen.before else 1


if __name__ == "__main__":
    sys.exit(main())
