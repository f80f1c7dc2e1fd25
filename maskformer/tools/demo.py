"""Train a model on the built-in dataset, measure it and draw what it sees: what ``make demo`` runs.

    python -m maskformer.tools.demo [--model NAME] [--output-dir FOLDER] [--seed N] [KEY VALUE ...]

A second call reuses what is there; an interrupted training goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.engine.hooks import CallbackHook, EvalHook
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from maskformer.config import load_config
from maskformer.data.datasets import register_all
from maskformer.demo.shapes import generate_shapes
from maskformer.engine.accelerator import resolve_device
from maskformer.engine.trainer import Trainer
from maskformer.exporting.folder import CONFIGURATION
from maskformer.files import unfinished
from maskformer.predictor import Predictor
from maskformer.reports import gallery
from maskformer.reports.console import ProgressLine, console_to_log
from maskformer.reports.media import write_picture
from maskformer.reports.tasks import ClassTable
from maskformer.runs import failures
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.runs.signals import Interrupted
from maskformer.structures import ESCAPING, InputError

Scores = dict[str, dict[str, float | None]]  # percent, by kind of result and metric

CONFIGS = Path(__file__).parents[2] / "configs" / "shapes"
MODELS = {  # and where their results go
    "maskformer": "output/shapes",
    "mask2former": "output/shapes_mask2former",
    "eomt": "output/shapes_eomt",
}
WEIGHTS = Path("model_final.pth")
METRICS = Path("demo", "metrics.json")  # the scores on held-out images
PAGE = Path("gallery", "index.html")  # written last
NUM_PICTURES = 8  # rows of the gallery
LOSS_WINDOW = 20  # iterations: the loss that is shown is their median
SCORES = (("semantic", "sem_seg", "mIoU"), ("panoptic", "panoptic_seg", "PQ"), ("instance", "segm", "AP"))
# What a run leaves in its folder; a run of other settings moves these aside, and nothing else.
LEFTOVERS = (
    "model_*.pth",
    "last_checkpoint",
    CONFIGURATION,
    "metrics.json",
    "events.out.*",
    "inference",
    "demo",
    "gallery",
)


@dataclass(frozen=True)
class Demo:
    """One run of the demo.

    Attributes:
        cfg: with a real device, seed and output folder.
        folder: where all results go.
        num_train: training images.
        num_val: held-out images.
        console: where the progress line goes.
    """

    cfg: CfgNode
    folder: Path
    num_train: int
    num_val: int
    console: TextIO

    def say(self, text: str) -> None:
        """Print a line on the console."""
        print(text, file=self.console, flush=True)

    def progress(self, title: str, **shape: Any) -> ProgressLine:
        """A progress line on the console."""
        return ProgressLine(title, stream=self.console, **shape)


def run(demo: Demo) -> None:
    """All steps; each one is skipped where its result is there.

    Raises:
        InputError: a mistake in the arguments or the configuration.
    """
    begin = time.monotonic()
    prepare_dataset(demo)
    set_aside_other_training(demo)
    train(demo)
    scores = evaluate(demo)
    draw_gallery(demo, scores)
    report(demo, scores, time.monotonic() - begin)


def prepare_dataset(demo: Demo) -> None:
    """Draw the built-in dataset, unless it is there with the same number of images."""
    drawn: list[ProgressLine] = []

    def progress(jobs: Sequence[Any]) -> ProgressLine:
        drawn.append(demo.progress("[1/4] Drawing the dataset", items=jobs, unit="images"))
        return drawn[0]

    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    folder = generate_shapes(root, num_train=demo.num_train, num_val=demo.num_val, progress=progress)
    if not drawn:
        demo.say(f"[1/4] Reusing the dataset in {folder}")
    register_all(root)


def _settings_hash(demo: Demo, *, of_training: bool) -> str:
    """What the results, or those of the training, depend on, in short; device and folders leave it the same."""
    cfg = demo.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.MODEL.DEVICE = ""
    images = [demo.num_train, demo.num_val]
    if of_training:
        cfg.pop("TEST")
        cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 0
        cfg.MODEL.MASK_FORMER.pop("TEST")
        images.pop()
    return hashlib.sha256(f"{cfg.dump()}{images}".encode()).hexdigest()


def set_aside_other_training(demo: Demo) -> None:
    """Move the results of other settings into a subfolder, so that nothing is mixed and nothing is lost."""
    settings = _settings_hash(demo, of_training=True)
    record = demo.folder / "demo" / "training.txt"  # with which settings the model was, or is being, trained
    if record.is_file() and record.read_text() == settings:
        return
    old = [path for pattern in LEFTOVERS for path in demo.folder.glob(pattern)]
    if old:
        place = demo.folder / time.strftime("before_%Y-%m-%d_%H-%M-%S")
        place.mkdir()
        for path in old:
            shutil.move(path, place)
        demo.say(f"      Results of other settings are kept in {place}")
    record.parent.mkdir(parents=True, exist_ok=True)
    (demo.folder / CONFIGURATION).write_text(demo.cfg.dump(), encoding="utf-8")  # for maskformer.load
    record.write_text(settings)


class DemoTrainer(Trainer):
    """The trainer without evaluation: that is a step of its own here."""

    def build_hooks(self) -> list[HookBase | None]:
        """All hooks but the evaluation."""
        return [hook for hook in super().build_hooks() if not isinstance(hook, EvalHook)]


def train(demo: Demo) -> None:
    """Train, or go on with an interrupted training; at Ctrl-C, the trainer saves first."""
    if (demo.folder / WEIGHTS).is_file():
        demo.say(f"[2/4] Reusing the model {demo.folder / WEIGHTS}")
        return
    trainer = DemoTrainer(demo.cfg)
    trainer.resume_or_load(resume=True)
    where = f" on {demo.cfg.MODEL.DEVICE}" + (f" (from iteration {trainer.start_iter})" if trainer.start_iter else "")
    steps = {"total": demo.cfg.SOLVER.MAX_ITER, "start": trainer.start_iter, "unit": "iterations"}
    with demo.progress(f"[2/4] Training{where}", **steps) as line:

        def show(_: Trainer) -> None:
            losses = trainer.storage.histories().get("total_loss")
            line.advance(note=f"loss {losses.median(LOSS_WINDOW):.2f}" if losses else "")

        trainer.register_hooks([CallbackHook(after_step=show)])
        trainer.train()


def evaluate(demo: Demo) -> Scores:
    """Measure the model on the held-out images and write ``metrics.json``."""
    file, settings, dataset = demo.folder / METRICS, _settings_hash(demo, of_training=False), demo.cfg.DATASETS.TEST[0]
    if _is_newer(file, demo.folder / WEIGHTS):
        content = json.loads(file.read_text())
        if content["settings"] == settings:
            demo.say(f"[3/4] Reusing the scores {file}")
            return content["scores"]
    loader, evaluator = Trainer.build_test_loader(demo.cfg, dataset), Trainer.build_evaluator(demo.cfg, dataset)
    batches = demo.progress("[3/4] Evaluating", items=loader, unit="images")
    measured = inference_on_dataset(_load_predictor(demo).model, batches, evaluator)
    scores = {  # JSON has no NaN
        kind: {name: score if math.isfinite(score) else None for name, score in values.items()}
        for kind, values in measured.items()
    }
    facts = {"dataset": dataset, "images": demo.num_val, "iterations": demo.cfg.SOLVER.MAX_ITER, "seed": demo.cfg.SEED}
    with unfinished(file) as temporary:
        temporary.write_text(json.dumps({**facts, "settings": settings, "scores": scores}, indent=1) + "\n")
    return scores


def _load_predictor(demo: Demo) -> Predictor:
    cfg = demo.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(demo.folder / WEIGHTS)
    return Predictor.from_config(cfg)


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime >= other.stat().st_mtime


def main_scores(scores: Scores) -> list[tuple[str, str, float]]:
    """(task, metric, percent) of those in ``SCORES`` that were measured."""
    found = [(task, metric, scores.get(kind, {}).get(metric)) for task, kind, metric in SCORES]
    return [(task, metric, value) for task, metric, value in found if value is not None]


def draw_gallery(demo: Demo, scores: Scores) -> None:
    """Draw some held-out images: a picture each, all in one, and a page."""
    page = demo.folder / PAGE
    if _is_newer(page, demo.folder / METRICS):
        demo.say(f"[4/4] Reusing the gallery {page}")
        return
    segment = _load_predictor(demo)
    classes = ClassTable.of(segment.classes, demo.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    records = DatasetCatalog.get(demo.cfg.DATASETS.TEST[0])[:NUM_PICTURES]
    rows = []
    for record in demo.progress("[4/4] Drawing the gallery", items=records, unit="images"):
        rows.append(gallery.join_row(gallery.make_row(record, segment, classes)))
        write_picture(page.with_name(Path(record["file_name"]).stem + ".png"), rows[-1])
    write_picture(page.with_name("gallery.png"), gallery.make_sheet(rows))
    curve = gallery.draw_curve(gallery.read_losses(demo.folder / "metrics.json"))
    write_picture(page.with_name("loss.png"), curve)
    summary = (
        f"Trained from scratch on {demo.num_train} drawn images for {demo.cfg.SOLVER.MAX_ITER} iterations; "
        f"measured on {demo.num_val} others, in percent."
    )
    gallery.write_gallery(page, "The built-in dataset", summary, main_scores(scores), rows, curve)


def report(demo: Demo, scores: Scores, seconds: float) -> None:
    """Say how good the model is and where everything lies."""
    demo.say(f"\nOn {demo.num_val} held-out images, in percent:")
    for task, metric, value in main_scores(scores):
        demo.say(f"  {task:<9} {metric:<5} {value:5.1f}")
    for name, path in (("\nPictures:", PAGE), ("Metrics: ", METRICS), ("Model:   ", WEIGHTS)):
        demo.say(f"{name} {demo.folder / path}")
    demo.say(f"Done in {ProgressLine.format_interval(seconds)}.")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maskformer.tools.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KEY VALUE pairs, which change the configuration, come last.",
    )
    parser.add_argument("--model", choices=MODELS, default="maskformer", help="which one of configs/shapes")
    parser.add_argument("--config-file", metavar="FILE", help="another model and its training")
    parser.add_argument(
        "--output-dir", metavar="FOLDER", help=f"where all results go (default: {', '.join(MODELS.values())})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training; the dataset is always the same")
    parser.add_argument("--train-images", type=int, default=1600, metavar="N", help="size of the dataset")
    parser.add_argument("--val-images", type=int, default=200, metavar="N", help="size of its held-out part")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line; results go to the model's own folder where none is named."""
    args = build_parser().parse_args(argv)
    args.output_dir = args.output_dir or MODELS[args.model]
    return args


def build_demo(args: argparse.Namespace, console: TextIO) -> Demo:
    """Read the configuration, and prepare seed and logs; an ``InputError`` names a mistake in them."""
    cfg = load_config(args.config_file or str(CONFIGS / f"{args.model}_panoptic.yaml"), args.opts)
    cfg.OUTPUT_DIR, cfg.SEED = args.output_dir, args.seed
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    for name in ("detectron2", "fvcore", "maskformer"):
        logging.getLogger(name).addHandler(ESCAPING)
        setup_logger(cfg.OUTPUT_DIR, name=name, configure_stdout=False)
    seed_all_rng(cfg.SEED)
    return Demo(cfg, Path(cfg.OUTPUT_DIR), args.train_images, args.val_images, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0; 2 after a user's mistake, told in one line; 130 after Ctrl-C.
    """
    args = parse(argv)
    try:
        with console_to_log(Path(args.output_dir) / "log.txt") as console:
            run(build_demo(args, console))
    except InputError as error:
        failures.report(error)
        return failures.EXIT_INPUT_ERROR
    except (KeyboardInterrupt, Interrupted):
        print("Interrupted; the same command goes on where this one stopped.", file=sys.stderr)
        return failures.EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
