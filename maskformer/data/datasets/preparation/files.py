"""What all ``datasets/prepare_*.py`` share: pairs of files, several processes, going on after an interruption."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskformer.files import unfinished
from maskformer.structures import InputError

IMAGES_PER_PROCESS = 16  # for fewer, starting a process takes longer than its work


@dataclass(frozen=True)
class Job:
    """The work on one image: files that are read, and files that are written, in this order."""

    sources: tuple[Path, ...]
    targets: tuple[Path, ...]

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has finished it."""
        return all(target.is_file() for target in self.targets)


def run_jobs(
    convert: Callable[[Job], None], jobs: Sequence[Job], *, workers: int, title: str, redo: bool = False
) -> str:
    """Do what is not done yet, under a progress bar.

    Args:
        convert: does one job; a function of a module, so that other processes find it.
        jobs: all of them.
        workers: processes; 1 works in this one.
        title: stands before the bar.
        redo: do again what is done.

    Returns:
        The counts in words: "12 written, 3 were there".

    Raises:
        InputError: a source cannot be converted; what was finished before stays, and the next run goes on from there.
    """
    todo = [job for job in jobs if redo or not job.is_done]
    for folder in {target.parent for job in todo for target in job.targets}:
        folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=title, unit="image") as bar:
        for _ in _finished(convert, todo, min(workers, len(todo) // IMAGES_PER_PROCESS)):
            bar.update()
    return f"{len(todo)} written, {len(jobs) - len(todo)} were there"


def _finished(convert: Callable[[Job], None], jobs: Sequence[Job], workers: int) -> Iterator[None]:
    if workers <= 1:
        yield from map(convert, jobs)
        return
    context = get_context("forkserver")  # forking a process with threads may hang; spawning imports PyTorch each time
    context.set_forkserver_preload([convert.__module__])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(convert, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the first mistake ends the run, not the last
            raise


def pair_files(images: Mapping[str, Path], labels: Mapping[str, Path], what: str) -> list[tuple[Path, Path]]:
    """Pair each image with its label, both by their names without endings; ``what`` calls the labels in a message.

    Returns:
        (image, label) in the order of the names.

    Raises:
        InputError: there are none, or one lacks the other.
    """
    if not images.keys() | labels.keys():
        raise InputError(f"There are no images and no {what}: set DETECTRON2_DATASETS or --root (datasets/README.md).")
    for missing, there, role in (
        (images.keys() - labels.keys(), images, f"images have no {what}"),
        (labels.keys() - images.keys(), labels, f"{what} have no image"),
    ):
        if missing:
            first = there[min(missing)]
            raise InputError(
                f"{len(missing)} of {len(there)} {role}, first {first}; expected the same names on both sides: unpack "
                "the dataset again (datasets/README.md)."
            )
    return [(images[name], labels[name]) for name in sorted(images)]


def find_files(folder: Path, pattern: str) -> dict[str, Path]:
    """Find the files of a folder by name without ending."""
    return {path.stem: path for path in folder.glob(pattern) if not path.name.startswith(".")}


def read_list(file: Path) -> list[str]:
    """Read the names of a text file, one a line.

    Raises:
        InputError: it is not there or has none.
    """
    names = file.read_text(encoding="utf-8").split() if file.is_file() else []
    if not names:
        raise InputError(f"{file} is missing or empty: set DETECTRON2_DATASETS or --root (datasets/README.md).")
    return names


def write_image(pixels: np.ndarray, target: Path) -> None:
    """Write (H,W) or (H,W,3) in the format of the name's ending; the file is there completely or not at all."""
    image_format = Image.registered_extensions()[target.suffix]
    with unfinished(target) as temporary:
        Image.fromarray(pixels).save(temporary, format=image_format)


def write_json(content: Any, target: Path) -> None:
    """Write a JSON file; it is there completely or not at all."""
    with unfinished(target) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def run_and_merge(
    convert: Callable[[Job], None],
    merge: Callable[[list[Any]], dict[str, Any]],
    jobs: Sequence[Job],
    target: Path,
    *,
    workers: int,
    title: str,
    redo: bool = False,
) -> str:
    """Do jobs whose last target is a part of one JSON file, put the parts together, and remove them.

    Args:
        convert: as in ``run_jobs``.
        merge: makes the JSON's content, with ``images``, of the content of the parts.
        jobs: all of them, with their parts in one folder.
        target: the JSON file.
        workers: as in ``run_jobs``.
        title: likewise.
        redo: likewise.
    """
    if not redo and target.is_file() and all(file.is_file() for job in jobs for file in job.targets[:-1]):
        images = json.loads(target.read_text(encoding="utf-8"))["images"]
        if {image["id"] for image in images} == {job.sources[0].stem for job in jobs}:
            return f"0 written, {len(jobs)} were there"
    counts = run_jobs(convert, jobs, workers=workers, title=title, redo=redo)
    write_json(merge([json.loads(job.targets[-1].read_text(encoding="utf-8")) for job in jobs]), target)
    for folder in {job.targets[-1].parent for job in jobs}:
        shutil.rmtree(folder)
    return counts


def run_command(description: str, prepare: Callable[[argparse.Namespace], None]) -> None:
    """Read ``root``, ``workers`` and ``redo`` and prepare; a user's mistake ends in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(description=description)
    default_root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default_root, help="folder of all datasets (default: %(default)s)")
    workers = min(os.cpu_count() or 1, 8)
    parser.add_argument("--workers", type=int, default=workers, help="processes (default: %(default)s)")
    parser.add_argument("--redo", action="store_true", help="do again what an earlier run has finished")
    try:
        prepare(parser.parse_args())
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from here.")
