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
from maskformer.reports.as_dataset import FOLDERS, ResultDataset
from maskformer.reports.console import ProgressLine
from maskformer.reports.media import Source, Video, VideoFile
from maskformer.reports.tasks import INSTANCE_THRESHOLD, TASKS, ClassTable, Task
from maskformer.runs.failures import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, is_out_of_memory
from maskformer.runs.launch import Place, find_place, find_shard, gather_from_ranks, is_restarted, take_device
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import BadImageError, Bands, InputError, printable

WINDOW = "MaskFormer (Esc or q: close)"
PAGE_NAME = "predictions.html"
CLOSING_KEYS = (27, ord("q"))  # 27: Esc
MAPPERS = {name: f"mask_former_{name}" for name in TASKS}  # that read a dataset of a task's results
PROGRESS_FROM = 4  # inputs; fewer are done before anybody wonders
EXIT_SOME_LEFT_OUT = 1


@dataclass(frozen=True)
class Annotator:
    """From an image to its picture and raw ids.

    Attributes:
        segment: RGB image -> the model's output.
        task: how to read, draw and encode the output.
        classes: K names and colours.
        facts: what the JSON says about model and dataset.
        things: numbers of the classes that are counted one by one.
        bands: how images are read; None: as plain pictures.
    """

    segment: Callable[[np.ndarray], dict[str, Any]]
    task: Task
    classes: ClassTable
    facts: dict[str, Any]
    things: frozenset[int] = frozenset()
    bands: Bands | None = None

    def facts_of(self, source: Source) -> dict[str, Any]:
        """What the JSON of one image says first, and by which another one in its place is told."""
        return {"image": source.name, "image_digest": media.digest(source.name), "task": self.task.name, **self.facts}

    def read(self, source: Source) -> np.ndarray:
        """An image as (height,width,3) uint8 RGB."""
        return media.read_picture(source.name, self.bands)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """What the model sees, drawn: (height,width,3) uint8 RGB."""
        return self.task.draw(image, self.task.read(self.segment(image)), self.classes)


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


def _draw(source: Source, output: Path, annotator: Annotator, *, resume: bool, quiet: bool) -> bool:
    """Write what is seen in an image or a video; False: an earlier run did."""
    if source.is_video:
        _annotate_video(source, output, annotator, quiet=quiet)
    elif resume and media.has_ids(output, annotator.facts_of(source)):
        return False
    else:
        _annotate_image(source, output, annotator)
    return True


def _label(source: Source, output: Path, annotator: Annotator, dataset: ResultDataset, *, resume: bool) -> bool:
    """Add an image with its result to a dataset; False: an earlier run did."""
    facts = annotator.facts_of(source)
    if resume and dataset.has(output, facts):
        return False
    result = annotator.task.read(annotator.segment(annotator.read(source)))
    dataset.add(source.name, output, annotator.task.encode(result, annotator.classes), facts)
    return True


def _annotate_image(source: Source, output: Path, annotator: Annotator) -> None:
    """Read one image, write its picture and ids, and last the JSON that says that they are complete."""
    facts, image, task = annotator.facts_of(source), annotator.read(source), annotator.task
    result = task.read(annotator.segment(image))
    picture, ids = task.draw(image, result, annotator.classes), task.encode(result, annotator.classes)
    media.write_result(output, picture, ids, facts, annotator.classes)


def _annotate_video(source: Source, output: Path, annotator: Annotator, *, quiet: bool = False) -> None:
    """Write a video with every frame drawn; Ctrl-C ends the recording of a camera."""
    video, num_frames = Video(source), 0
    with (
        VideoFile(output, video.frame_rate) as file,
        ProgressLine(f"Drawing {source.name}", video.num_frames, unit="frames", quiet=quiet) as progress,
    ):
        try:
            for frame in video:
                file.write(annotator.picture(frame))
                num_frames += 1
                progress.advance()
        except KeyboardInterrupt:
            if source.camera is None:
                raise
    if not num_frames:
        raise BadImageError(f"{source.name} holds no readable frame; expected a video with at least one.")
    if file.path != output:
        _warn(f"OpenCV cannot write {output.suffix} here; {source.name} is drawn in {file.path}")


def _warn(sentence: str) -> None:
    """Tell something that does not stop the work."""
    print(f"warning: {printable(sentence)}", file=sys.stderr)


def _annotate_all(plan: Plan, annotate: Callable[[Source, Path], bool]) -> int:
    """Write the results of this process's share; of several, one that cannot be read is left out and named at the end.

    Returns:
        The exit code: that of all processes that share the work.
    """
    left_out, num_before, work = [], 0, plan.own_work
    quiet = len(work) < PROGRESS_FROM or plan.place.rank > 0
    with ProgressLine("Drawing", len(work), unit="inputs", quiet=quiet) as progress:
        for source, output in work:
            try:
                with _named(source):
                    num_before += not annotate(source, output)
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


def _write_dataset(plan: Plan, args: argparse.Namespace) -> int:
    """Write the results of all images as a dataset; a shard leaves what holds them together to a later call."""
    folder = Path(args.output)
    cfg, annotator = _build_annotator(args, plan.place)
    dataset = ResultDataset(folder, annotator.task, annotator.classes, annotator.things, annotator.bands)
    if plan.resume:
        remove_folders_beside(file for _, picture in plan.own_work for file in dataset.files(picture))
    exit_code = _annotate_all(plan, partial(_label, annotator=annotator, dataset=dataset, resume=plan.resume))
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


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maskformer.tools.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KEY VALUE pairs, which change the configuration, come last.\n"
        "Exit code: 0 all drawn, 1 some inputs could not be read, 2 a mistake in the arguments.",
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
    parser.add_argument("--device", default="auto", help='cpu, cuda, ...; "auto": an accelerator, else the CPU')
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def _build_annotator(args: argparse.Namespace, place: Place) -> tuple[CfgNode, Annotator]:
    """Load the configuration, the model and what is known about its classes."""
    cfg = load_config(args.config_file, args.opts)
    if args.weights is not None:
        cfg.MODEL.WEIGHTS = args.weights
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE if args.device == "auto" else args.device)
    take_device(Accelerator(cfg.MODEL.DEVICE), place)
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
    segment = partial(predictor, task=task.name, threshold=args.confidence_threshold)
    things = (predictor.classes and predictor.classes.things) or frozenset()
    return cfg, Annotator(segment, task, classes, facts, things, predictor.bands)


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
    if args.as_dataset:
        return _write_dataset(plan, args)
    annotator = _build_annotator(args, place)[1]
    if plan.resume:
        remove_folders_beside(file for _, picture in plan.own_work for file in media.files_of(picture))
    exit_code = _annotate_all(plan, partial(_draw, annotator=annotator, resume=plan.resume, quiet=not plan.is_of_one))
    if place.rank == 0:
        _show_in_page(outputs)
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
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
