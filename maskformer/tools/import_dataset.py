"""Make a dataset that training reads of what another program wrote.

    python -m maskformer.tools.import_dataset --from cvat-xml task.zip garden
    python train_net.py --config-file garden/dataset.yaml

TARGET is a new folder with pictures, COCO JSON or label maps, and dataset.yaml. It needs SOURCE no more, and may be
moved. What a dataset cannot hold is counted and said at the end.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from maskformer.config import load_config
from maskformer.data.importing import cvat_xml, hf_datasets, label_studio, labelme, supervisely, yolo_seg
from maskformer.data.importing.archive import open_source
from maskformer.data.importing.importer import Summary, write_dataset
from maskformer.data.importing.source import Losses, Source, find_coco
from maskformer.data.importing.target import CONFIGURATION, plain_name
from maskformer.engine.setup import register_datasets
from maskformer.files import folder_beside
from maskformer.reports.console import ProgressLine
from maskformer.runs.failures import EXIT_INPUT_ERROR, EXIT_INTERRUPTED
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError, printable

READERS: dict[str, Callable[[Path, Path | None, Losses], Source]] = {
    "yolo-seg": yolo_seg.read,
    "labelme": labelme.read,
    "cvat-xml": cvat_xml.read,
    "label-studio": label_studio.read,
    "hf-datasets": hf_datasets.read,
    "supervisely": supervisely.read,
}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = {
    "instances": "coco-instance/maskformer_instance_R50_bs64_554k.yaml",
    "labels": "ade20k-150/maskformer_R50_bs16_160k.yaml",
}
EXIT_SOME_LEFT_OUT = 1
MOST_NAMED = 10  # pictures that are left out


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maskformer.tools.import_dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code: 0 written, 1 written without some pictures, 2 a mistake in the arguments or the source.",
    )
    parser.add_argument("--from", dest="format", required=True, choices=READERS, help="what wrote SOURCE")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder, file in it, or zip archive")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder that is new or empty")
    parser.add_argument(
        "--as",
        dest="form",
        choices=RECIPES,
        help="COCO JSON of instances, or label maps; by default what SOURCE holds rather: label maps of masks (Hugging "
        "Face) and of brushes (Label Studio), else instances",
    )
    parser.add_argument(
        "--unlabelled",
        choices=("background", "ignore"),
        default="background",
        help="with --as labels: pixels of no object are a class of their own (the default), or ignored",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="0..1, of the pictures to evaluate on where SOURCE has no split for it (default %(default)s)",
    )
    parser.add_argument("--name", help="of the dataset, whose splits are NAME_train and so on; by default TARGET's")
    parser.add_argument("--base", metavar="FILE", help="configuration of the model, by default a recipe with ResNet-50")
    return parser


def import_dataset(args: argparse.Namespace) -> int:
    """Do what the arguments say; a failure leaves nothing.

    Returns:
        Exit code.

    Raises:
        InputError: a mistake in the arguments or the source.
    """
    target, losses = args.target.absolute(), Losses()
    if not 0 <= args.val_share < 1:
        raise InputError(f"--val-share is {args.val_share}; expected 0 or more and less than 1.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"TARGET {args.target} is a file or holds files; expected a folder that is new or empty.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with folder_beside(target) as work:
            unpacked, built = Path(work, "source"), Path(work, "target")
            unpacked.mkdir()
            built.mkdir()
            print(f"reading {printable(str(args.source))}", file=sys.stderr)
            source = _read(args, unpacked, losses)
            summary = write_dataset(
                source,
                built,
                name=plain_name(args.name or target.name),
                base=_find_base(args.base, args.form or source.form),
                form=args.form,
                val_share=args.val_share,
                background=args.unlabelled == "background",
                losses=losses,
                progress=lambda jobs: ProgressLine("importing", items=jobs, unit="pictures"),
            )
            register_datasets(load_config(str(built / CONFIGURATION)))  # which refuses the name of another dataset
            built.rename(target)
    except OSError as error:
        raise InputError(f"{args.source} cannot be written to TARGET {args.target}: {error}.") from error
    print(describe(summary, losses, args.target / CONFIGURATION))
    return EXIT_SOME_LEFT_OUT if summary.left_out else 0


def _read(args: argparse.Namespace, unpacked: Path, losses: Losses) -> Source:
    root, main = open_source(args.source.absolute(), unpacked)
    try:
        return READERS[args.format](root, main, losses)
    except InputError as error:
        if (coco := find_coco(root)) is None:
            raise
        raise InputError(
            f"{error} {coco.name} is a COCO JSON, which needs no import: name it as instances in DATASETS.OWN "
            "(docs/own_data.md)."
        ) from error


def _find_base(given: str | None, form: str) -> str:
    base = Path(given).absolute() if given else CONFIGS / RECIPES[form]
    if not base.is_file():
        raise InputError(
            f"The configuration of the model, {base}, does not exist; expected a YAML file, such as "
            f"configs/{RECIPES[form]} of the repository: name one with --base."
        )
    return str(base)


def describe(summary: Summary, losses: Losses, configuration: Path) -> str:
    """What was written and what was lost, in lines."""
    splits = ", ".join(f"{split} {number}" for split, number in summary.pictures.items())
    kind = "instances" if summary.form == "instances" else "areas in label maps"
    lines = [f"left out: {sentence}" for sentence in summary.left_out[:MOST_NAMED]]
    if len(summary.left_out) > MOST_NAMED:
        lines.append(f"left out: {len(summary.left_out) - MOST_NAMED} more")
    number = sum(summary.pictures.values())
    lines.append(f"{number} pictures ({splits}), {len(summary.classes)} classes, {summary.objects} {kind}")
    rows = [(count, what, losses.first[what]) for what, count in losses.counts.most_common()]
    table = tabulate(rows, headers=("number", "lost or changed", "first in"), disable_numparse=True)
    lines.append(table if rows else "nothing was lost")
    lines.append(f"python train_net.py --config-file {shlex.quote(str(configuration))}")
    return "\n".join(printable(line, keep="\n") for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake ends in one line on standard error."""
    args = build_parser().parse_args(argv)
    try:
        return import_dataset(args)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
