"""Draw what a trained model sees in images, videos or a camera's pictures, and save the raw ids of images.

    python -m maskformer.tools.predict --config-file FILE --weights FILE --input a.jpg folder 'more/*.png' --output out/

Beside each image's picture: ``NAME_ids.png`` with raw ids and ``NAME_ids.json``, which says what the ids mean. Of
inputs that differ in their endings alone, NAME has the ending too: ``a.jpg`` and ``a.png`` become ``a_jpg.jpg`` and
``a_png.png``. Files are whole or not there; after an interruption, the same command with ``--resume`` does the rest.
Of several images, ``predictions.html`` shows all.

Several processes share the inputs, under torchrun or with ``--shard I/N``, and write what one process writes.

With ``--as-dataset``, the folder becomes a dataset that training reads instead, with the results as its labels.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode

from maskformer.config import load_config
from maskformer.data.importing.target import IMAGE_SUFFIXES
from maskformer.engine.accelerator import Accelerator, resolve_device
from maskformer.engine.setup import register_datasets
from maskformer.evaluation.loop import fingerprint
from maskformer.files import remove_folders_beside
from maskformer.predictor import Predictor
from maskformer.reports import gallery, media, tasks
from maskformer.reports.annotator import Annotator, Prepared, Seen, add_labels, draw_frame, write_drawing
from maskformer.reports.as_dataset import FOLDERS, ResultDataset
from maskformer.reports.console import ProgressLine
from maskformer.reports.media import Source, Video, VideoFile
from maskformer.reports.tasks import INSTANCE_THRESHOLD, TASKS, ClassTable
from maskformer.runs.background import MOST_WORKERS, Background, Stages, default_workers
from maskformer.runs.failures import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, EXIT_RUN_ERROR, is_out_of_memory
from maskformer.runs.launch import Place, find_place, find_shard, gather_from_ranks, is_restarted, take_device
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import BadImageError, InputError, RunError, printable

WINDOW = "MaskFormer (Esc or q: close)"
PAGE_NAME = "predictions.html"
CLOSING_KEYS = (27, ord("q"))  # 27: Esc
MAPPERS = {name: f"mask_former_{name}" for name in TASKS}  # that read a dataset of a task's results
PROGRESS_FROM = 4  # inputs; fewer are done before anybody wonders
EXIT_SOME_LEFT_OUT = 1
BATCH_SIZE = 4  # by default, but on a CPU


@dataclass(frozen=True)
class Plan:
    """What is read and written, by all processes alike, and which part of it is whose.

    Attributes:
        sources: all inputs.
        outputs: the file for each.
        shard: "I/N", as asked for; None: all inputs.
        place: of this process among those that torchrun started.
        resume: whether to pass over what is done.
    """

    sources: Sequence[Source]
    outputs: Sequence[Path]
    shard: str | None
    place: Place
    resume: bool

    @property
    def work(self) -> list[tuple[Source, Path]]:
        """Of the shard."""
        return list(zip(self.sources, self.outputs, strict=True))[find_shard(self.shard)]

    @property
    def own_work(self) -> list[tuple[Source, Path]]:
        """Of this process."""
        return self.work[self.place.rank :: self.place.world_size]

    @property
    def is_of_one(self) -> bool:
        """Whether there is one input: if it is bad, that is a mistake."""
        return len(self.sources) == 1

    def tell(self, num_left_out: int, num_before: int) -> None:
        """Say what was done."""
        target = self.outputs[0] if self.is_of_one else self.outputs[0].parent
        before = f" ({num_before} of them before)" if num_before else ""
        of_shard = "" if self.shard is None else f" of shard {self.shard}"
        count = len(self.work)
        print(f"{count - num_left_out} of {count} inputs{of_shard} drawn{before}: {printable(str(target))}")


def _stages(annotator: Annotator, read: Callable[[Any], Any], finish: Callable[[Any, Seen], Any]) -> Stages:
    return Stages(read, annotator.bucket, annotator.segment, annotator.fetch, finish)


def _read(work: tuple[Source, Path], annotator: Annotator, has: Callable[..., bool] | None) -> Prepared | None:
    """Read an image; None: an earlier run did what is to be done with it."""
    source, output = work
    facts = annotator.facts_of(source)
    if has is not None and has(output, facts):
        return None
    return annotator.prepare(annotator.read(source), facts)


def _annotate_video(
    source: Source, output: Path, annotator: Annotator, background: Background, *, quiet: bool = False
) -> bool:
    """Write a video with every frame drawn; Ctrl-C ends the recording of a camera."""
    video, num_frames = Video(source), 0
    pictures: Iterable[np.ndarray]
    if source.camera is None:
        draw = partial(draw_frame, task=annotator.task, classes=annotator.classes)
        stages = _stages(annotator, annotator.prepare, draw)
        pictures = (drawing.result() for _, drawing in background.run(video, stages))
    else:
        pictures = map(annotator.picture, video)  # a camera does not wait: what is drawn is what it sees now
    with (
        VideoFile(output, video.frame_rate) as file,
        ProgressLine(f"Drawing {source.name}", video.num_frames, unit="frames", quiet=quiet) as progress,
    ):
        try:
            for picture in pictures:
                file.write(picture)
                num_frames += 1
                progress.advance()
        except KeyboardInterrupt:
            if source.camera is None:
                raise
    if not num_frames:
        raise BadImageError(f"{source.name} holds no readable frame; expected a video with at least one.")
    if file.path != output:
        _warn(f"OpenCV cannot write {output.suffix} here; {source.name} is drawn in {file.path}")
    return True


def _warn(sentence: str) -> None:
    """Tell something that does not stop the work."""
    print(f"warning: {printable(sentence)}", file=sys.stderr)


def _annotate(
    plan: Plan, annotator: Annotator, background: Background, stages: Stages
) -> Iterator[tuple[Source, Callable[[], Any]]]:
    """Yield each input of this process's share, in order, with a function that waits for it; None: it was done."""
    for is_video, work in groupby(plan.own_work, lambda pair: pair[0].is_video):
        if is_video:
            for source, output in work:
                draw = partial(_annotate_video, source, output, annotator, background, quiet=not plan.is_of_one)
                yield source, draw
        else:
            for (source, _), result in background.run(work, stages):
                yield source, result.result


def _annotate_all(
    plan: Plan,
    annotator: Annotator,
    background: Background,
    has: Callable[..., bool],
    finish: Callable[[Any, Seen], bool],
) -> int:
    """Write the results of this process's share; of several, one that cannot be read is left out and named at the end.

    Args:
        plan: of all processes.
        annotator: the model, and how its results are read.
        background: where the work is done.
        has: (output, facts) -> whether it is complete.
        finish: writes an image's result.

    Returns:
        The exit code: that of all processes that share the work.
    """
    left_out, num_before = [], 0
    stages = _stages(annotator, partial(_read, annotator=annotator, has=has if plan.resume else None), finish)
    quiet = len(plan.own_work) < PROGRESS_FROM or plan.place.rank > 0
    with ProgressLine("Drawing", len(plan.own_work), unit="inputs", quiet=quiet) as progress:
        for source, wait_for in _annotate(plan, annotator, background, stages):
            try:
                with _named(source):
                    num_before += wait_for() is None
            except BadImageError as error:
                if plan.is_of_one:
                    raise
                left_out.append(error)
            progress.advance(note=os.path.basename(source.name))
    for failure in left_out:
        _warn(f"left out: {failure}")
    num_left_out, num_before = map(sum, zip(*gather_from_ranks((len(left_out), num_before))))
    if plan.place.rank == 0:
        plan.tell(num_left_out, num_before)
    return EXIT_SOME_LEFT_OUT if num_left_out else 0


def _write_dataset(plan: Plan, args: argparse.Namespace, background: Background) -> int:
    """Write the results of all images as a dataset; a shard leaves what holds them together to a later call."""
    folder = Path(args.output)
    cfg, annotator = _build_annotator(args, plan.place, background)
    known, bands = annotator.predictor.classes, annotator.predictor.bands
    things = (known and known.things) or frozenset()
    dataset = ResultDataset(folder, annotator.task, annotator.classes, things, bands)
    if plan.resume:
        remove_folders_beside(file for _, picture in plan.own_work for file in dataset.files(picture))
    exit_code = _annotate_all(plan, annotator, background, dataset.has, partial(add_labels, dataset=dataset))
    if plan.place.rank > 0:
        return exit_code
    if plan.shard is not None:
        print("When all shards are done, the same command with --resume and without --shard writes dataset.yaml.")
        return exit_code
    mapper = cfg.INPUT.DATASET_MAPPER_NAME
    more = {} if annotator.task.name in mapper else {"INPUT": {"DATASET_MAPPER_NAME": MAPPERS[annotator.task.name]}}
    path, kept = dataset.finish(plan.outputs, os.path.abspath(args.config_file), more)
    print(f"{kept} of {len(plan.outputs)} pictures have a result above the threshold: {printable(str(path))}")
    return exit_code


def _plan_dataset(sources: Sequence[Source], args: argparse.Namespace, *, is_shared: bool) -> list[Path]:
    """Where the pictures of a dataset go; other processes may have begun to fill its folders."""
    folder = Path(args.output)
    videos = [source.name for source in sources if source.is_video]
    if videos:
        raise InputError(f"--as-dataset takes images, but {videos[0]} is a video: give its frames as images.")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() and not args.resume else set()
    if folder.is_file() or held - (set(FOLDERS) if is_shared else set()):
        remedy = "a folder that is new or empty, or --resume to go on with what the same command began"
        raise InputError(f"--output {folder} is a file, or holds files; expected {remedy}.")
    return [
        path if path.suffix.lower() in IMAGE_SUFFIXES else path.with_suffix(".png")
        for path in media.plan_outputs(sources, os.path.join(folder, "images", ""))
    ]


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Have the source in the sentence about what cannot be drawn, of which too large a picture is one."""
    try:
        yield
    except BadImageError as error:
        if source.name in str(error):
            raise
        raise BadImageError(f"{source.name}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BadImageError(f"{source.name} needs more memory than there is: lower INPUT.MAX_SIZE_TEST.") from error


def _show_all(sources: Sequence[Source], annotator: Annotator) -> int:
    """Show images in a window, each until a key is pressed, and videos frame by frame; returns the exit code."""
    exit_code = 0
    for source in sources:
        try:
            with _named(source):
                if source.is_video:
                    _show(map(annotator.picture, Video(source)), wait=1)
                else:
                    _show([annotator.picture(annotator.read(source))], wait=0)
        except BadImageError as error:
            _warn(f"left out: {error}")
            exit_code = EXIT_SOME_LEFT_OUT
    cv2.destroyAllWindows()
    return exit_code


def _show(pictures: Iterable[np.ndarray], wait: int) -> None:
    """Show RGB pictures, each for ``wait`` milliseconds (0: until a key is pressed), until a closing key."""
    for picture in pictures:
        cv2.imshow(WINDOW, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))  # OpenCV's pictures are BGR
        if cv2.waitKey(wait) & 0xFF in CLOSING_KEYS:
            return


def open_window() -> None:
    """Make sure that pictures can be shown."""
    remedy = "say with --output where to write (a file or a folder)."
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise InputError(f"There is no display to open a window on: {remedy}")
    try:
        cv2.namedWindow(WINDOW)
    except cv2.error as error:
        raise InputError(f"This OpenCV cannot open windows (a headless build): {remedy}") from error


def positive(text: str, least: int = 1) -> int:
    """A number of the command line."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}; expected an integer from {least}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maskformer.tools.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KEY VALUE pairs, which change the configuration, come last.\n"
        "Exit code: 0 all drawn, 1 some inputs could not be read, 2 a mistake in the arguments, 3 a process was lost.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's configuration")
    parser.add_argument("--weights", metavar="FILE", help="the trained model; else the configuration's MODEL.WEIGHTS")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--input", nargs="+", metavar="PATH", help="images, videos, folders and globs")
    inputs.add_argument("--video-input", metavar="FILE", help="a video file, whatever its name ends in")
    inputs.add_argument("--webcam", nargs="?", type=int, const=0, metavar="INDEX", help="by default the first camera")
    parser.add_argument("--output", metavar="PATH", help="file (for one input) or folder; else a window opens")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="after an interruption: pass over images whose files are complete and of the same model and options; "
        "videos are drawn again",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="draw every N-th input, from the I-th on, counted from 0; all shards 0/N .. N-1/N draw all",
    )
    parser.add_argument("--task", choices=TASKS, help="by default the first of these that the model has switched on")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help=f"0..1. Instance: draw and save what scores higher (default {INSTANCE_THRESHOLD}). Panoptic: the least "
        "class probability of a segment, MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD. Semantic: pixels whose class is "
        "not more probable have none (default 0).",
    )
    parser.add_argument(
        "--as-dataset",
        action="store_true",
        help="make --output a dataset instead of drawings: pictures, label maps or COCO JSON of what exceeds the "
        "threshold, and dataset.yaml for train_net.py",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help=f"images of one padded size that the model sees together; by default 1 on a CPU, else {BATCH_SIZE}. More "
        "than 1 changes results by rounding",
    )
    parser.add_argument(
        "--workers",
        type=partial(positive, least=0),
        metavar="N",
        help="threads that read ahead, and processes that draw and write; 0: one image after the other. By default the "
        f"number of cores, at most {MOST_WORKERS}, and 0 for fewer than {PROGRESS_FROM} images",
    )
    parser.add_argument("--device", default="auto", help='cpu, cuda, ...; "auto": an accelerator, else the CPU')
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def _build_annotator(
    args: argparse.Namespace, place: Place, background: Background | None = None
) -> tuple[CfgNode, Annotator]:
    """Load the configuration, the model and what is known about its classes."""
    cfg = load_config(args.config_file, args.opts)
    if args.weights is not None:
        cfg.MODEL.WEIGHTS = args.weights
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE if args.device == "auto" else args.device)
    accelerator = Accelerator(cfg.MODEL.DEVICE)
    take_device(accelerator, place)
    task = tasks.choose_task(cfg, args.task)
    if args.confidence_threshold is not None:
        task, _ = task.above(args.confidence_threshold, "--confidence-threshold")  # the predictor is told it too
    register_datasets(cfg)
    tasks.give_only(task, cfg)
    predictor = Predictor.from_config(cfg)
    dataset = cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else ""
    if predictor.classes is None:
        _warn(f"dataset {dataset!r} (DATASETS.TEST) is not registered, nor do weights say it: classes are numbered.")
    classes = ClassTable.of(predictor.classes, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    facts = {
        "config_file": args.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "dataset": dataset,
        "fingerprint": fingerprint(cfg, predictor.model, [args.confidence_threshold, classes.names, predictor.bands]),
    }
    if background is not None:
        background.batch_size = args.batch_size or (1 if accelerator.type == "cpu" else BATCH_SIZE)
    pins = accelerator.reads_pinned_memory
    return cfg, Annotator(predictor, task, classes, facts, args.confidence_threshold, pins)


def predict(args: argparse.Namespace) -> int:
    """Do what the arguments say; mistakes about files are found before the model is loaded.

    Returns:
        Exit code.

    Raises:
        InputError: a mistake in the arguments.
    """
    if args.webcam is not None:
        sources = [Source(f"camera_{args.webcam}", is_video=True, camera=args.webcam)]
    elif args.video_input is not None:
        sources = [Source(args.video_input, is_video=True)]
    else:
        sources = media.find_sources(args.input)
    find_shard(args.shard)  # a mistake is told before anything else
    place = find_place()
    is_shared = args.shard is not None or place.world_size > 1
    if args.output is None:
        if args.as_dataset or is_shared:
            raise InputError(
                "--as-dataset, --shard and torchrun need a file or folder to write to: name it (--output)."
            )
        open_window()
        return _show_all(sources, _build_annotator(args, place)[1])
    if args.as_dataset:
        outputs = _plan_dataset(sources, args, is_shared=is_shared)
    else:
        outputs = media.plan_outputs(sources, args.output)
    plan = Plan(sources, outputs, args.shard, place, resume=args.resume or is_restarted())
    with Background(_choose_workers(args, plan), args.batch_size or 1) as background:
        return (_write_dataset if args.as_dataset else _write_drawings)(plan, args, background)


def _choose_workers(args: argparse.Namespace, plan: Plan) -> int:
    """Those asked for; else as many as there are cores, if there is enough to do."""
    if args.workers is not None:
        return args.workers
    work = plan.own_work
    pays = len(work) >= PROGRESS_FROM or any(source.is_video and source.camera is None for source, _ in work)
    return default_workers(plan.place.local_world_size) if pays else 0


def _write_drawings(plan: Plan, args: argparse.Namespace, background: Background) -> int:
    """Draw all inputs; of several images, a page shows them."""
    annotator = _build_annotator(args, plan.place, background)[1]
    if plan.resume:
        remove_folders_beside(file for _, picture in plan.own_work for file in media.files_of(picture))
    draw = partial(write_drawing, task=annotator.task, classes=annotator.classes)
    exit_code = _annotate_all(plan, annotator, background, media.has_ids, draw)
    if plan.place.rank == 0:
        _show_in_page(plan.outputs)
    return exit_code


def _show_in_page(outputs: Sequence[Path]) -> None:
    """Write a page that shows all drawn images of a folder, where there are several."""
    shown: list[Path] = []
    while True:  # once more, if another shard has ended meanwhile: its own page may have been overwritten
        drawn = [path for path in outputs if path.suffix.lower() in media.IMAGE_SUFFIXES and path.is_file()]
        if len(drawn) < 2 or drawn == shown:
            break
        page, shown = drawn[0].parent / PAGE_NAME, drawn
        try:
            gallery.write_index(page, "Predictions", drawn)
        except OSError as error:
            _warn(f"{page} cannot be written: {error.strerror}")
            return
    if shown:
        print(f"all in a page: {printable(str(page))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake ends in one line on standard error."""
    args = build_parser().parse_args(argv)
    try:
        return predict(args)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except RunError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_RUN_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
