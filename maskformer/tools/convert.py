"""Convert weights of any known layout to this package's names, or a model to Hugging Face's format.

    python -m maskformer.tools.convert SOURCE OUT.safetensors [--config-file FILE]
    python -m maskformer.tools.convert SOURCE OUT_FOLDER --to hugging-face --config-file FILE

SOURCE is a file or a folder of Hugging Face's. With a configuration the result is checked against its model.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from maskformer.checkpoint import Checkpointer, convert_weights, find_weights_file, fit_to_model, read_weights
from maskformer.config import load_config
from maskformer.data.datasets.own import bands_of
from maskformer.exporting.folder import write_folder, write_weights
from maskformer.meta_arch import know_classes
from maskformer.runs.failures import EXIT_INPUT_ERROR
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import Classes, InputError, printable

SUFFIXES = (".safetensors", ".pth")


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m maskformer.tools.convert", description=__doc__.split("\n")[0])
    parser.add_argument("source", help="weights of any known layout, or a folder that save_pretrained wrote")
    parser.add_argument("out", help=".safetensors or .pth; with --to hugging-face a folder")
    parser.add_argument("--to", choices=("detectron2", "hugging-face"), default="detectron2")
    parser.add_argument("--config-file", metavar="FILE", help="of the model that the weights are for")
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    return parser


def convert(source: str, out: Path, *, to: str, cfg: CfgNode | None) -> list[str]:
    """Convert, check against the model where there is a configuration, and write.

    Args:
        source: file or folder.
        out: file, or folder for Hugging Face.
        to: "detectron2" or "hugging-face".
        cfg: of the model.

    Returns:
        The report, a sentence a line.

    Raises:
        InputError: the source cannot be read or does not fit, or the model has no counterpart there.
    """
    path = find_weights_file(source)
    if to == "hugging-face" and out.is_file():
        raise InputError(f"{out} is a file; with --to hugging-face OUT is a folder.")
    if to == "detectron2" and out.suffix not in SUFFIXES:
        raise InputError(f"OUT is {out}; expected a name that ends in {' or '.join(SUFFIXES)}.")
    if os.path.realpath(path) in (os.path.realpath(out), os.path.realpath(out / "model.safetensors")):
        raise InputError(f"OUT {out} would overwrite SOURCE; choose another name.")
    if to == "hugging-face" and cfg is None:
        raise InputError("Hugging Face's format describes the model too: give its --config-file.")
    if not os.path.isfile(path):
        raise InputError(f"Weights file {path} does not exist; SOURCE is a file or a folder with weights.")
    content = read_weights(path)
    model: Any = None if cfg is None else build_model(cfg)
    conversion = convert_weights(content["model"], path, backbone=getattr(model, "backbone", None))
    report = [
        f"Loaded {path}: {conversion.layout.name}, {len(conversion.state)} tensors by our names, "
        f"{conversion.renamed} of them renamed"
    ]
    classes = Classes.from_plain(content.get("classes"), path)
    state = fit_to_model(conversion, model, path)
    if cfg is not None:
        know_classes(model, cfg)
        Checkpointer(model).load(path)
        expected, given = model.state_dict().keys(), state.keys()
        needed = [name for name, _ in model.named_parameters() if name not in given]
        if to == "hugging-face" and needed:
            raise InputError(
                f"SOURCE {path} is no whole model, as Hugging Face's format needs: it lacks {_summary(needed)}."
            )
        report += [
            f"Missing, which the model has and the file has not: {_summary(expected - given)}",
            f"Unexpected, which the file has and the model has not: {_summary(given - expected)}",
        ]
    if to == "detectron2" or cfg is None:
        write_weights(out, state, classes)
    else:
        bands = bands_of((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN))
        without_place = write_folder(out, state, cfg, model.classes, layout=to, bands=bands)
        report.append(f"Left out, which Hugging Face has no place for: {_summary(without_place)}")
        if model.classes is None:
            report.append(
                "Class names are not known, neither by the weights nor of a dataset of DATASETS: LABEL_0, ..."
            )
    return [*report, f"Written: {out}"]


def _summary(names: Iterable[str]) -> str:
    counts = collections.Counter(".".join(name.split(".")[:2]) for name in sorted(names))
    return ", ".join(f"{beginning} ({count})" for beginning, count in counts.items()) or "none"


def main(arguments: list[str] | None = None) -> int:
    """Convert and say what was done; returns the exit code."""
    args = build_parser().parse_intermixed_args(arguments)
    try:
        cfg = None
        if args.config_file:
            cfg = load_config(args.config_file, [*args.options, "MODEL.DEVICE", "cpu"])
        elif args.options:
            raise InputError(f"{args.options[0]} changes a configuration, but there is no --config-file.")
        for line in convert(args.source, Path(args.out), to=args.to, cfg=cfg):
            print(printable(line))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
