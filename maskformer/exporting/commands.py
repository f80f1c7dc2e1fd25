"""``maskformer.export``: a model becomes a file that another program runs, and is proven to be the same model."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib import cbook
from PIL import Image
from torch import nn

from maskformer.engine.test_time import innermost
from maskformer.files import json_text
from maskformer.predictor import CHANNEL_ORDERS, Predictor, as_rgb, load
from maskformer.reports import media
from maskformer.runs.failures import is_out_of_memory
from maskformer.structures import SCREEN, BadImageError, InputError, check_choice

from . import program as programs
from .folder import whole
from .graph import choose_task
from .hugging_face_config import read_json
from .metadata import KEY, describe_export
from .onnx_files import quantise, tidy
from .proof import LIMITS, Comparison, compare, find_runners, views_of

Size = tuple[int, int]
_LONGEST_PROVEN = 640  # pixels of the shorter side of the picture that the file is proven on
_MOST_CALIBRATING = 100  # pictures
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PRECISIONS = tuple(LIMITS)


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        task: "panoptic", "instance", "semantic", or "queries" for class and mask logits; None: the first of these that
            the model has switched on.
        size: (height, width) that pictures must have; None: pictures, and batches, of any size.
        precision: "float32"; "float16", of the network's weights and products; or "int8", of ONNX's convolutions.
        calibration: for int8, a folder of pictures like those that the model will see; a hundred suffice.
        picture: that the file is proven on; None: a photograph that comes with Matplotlib.
        licence: of the weights, such as "apache-2.0"; "": the file says that nobody stated it.
    """

    task: str | None = None
    size: Size | None = None
    precision: str = "float32"
    calibration: str | Path | None = None
    picture: str | Path | None = None
    licence: str = ""

    def check(self, output: Path) -> None:
        """Raise an ``InputError`` for what is wrong whatever the model is."""
        if output.suffix not in programs.SUFFIXES:
            raise InputError(f"The output is {output}; expected a name that ends in {' or '.join(programs.SUFFIXES)}.")
        if output.is_dir():
            raise InputError(f"The output {output} is a folder; expected the name of a file.")
        check_choice(self.precision, PRECISIONS, "precision")
        sides = self.size if isinstance(self.size, (tuple, list)) else (self.size,)
        if self.size is not None and (len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides)):
            raise InputError(f"size is {self.size!r}; expected (height, width), integers from 1.")
        if self.precision != "int8" and self.calibration is not None:
            raise InputError(f"calibration is for int8, but precision is {self.precision!r}: leave one of them out.")
        if self.precision == "int8" and output.suffix != ".onnx":
            raise InputError(f"precision is 'int8', which {output.suffix} files do not have: write an .onnx file.")
        if self.precision == "int8" and self.calibration is None:
            raise InputError(
                "precision is 'int8', which needs pictures that show the range of values: name a folder of some that "
                "are like those that the model will see (calibration)."
            )
        missing = [name for name in _PACKAGES if output.suffix == ".onnx" and importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"ONNX files need {', '.join(missing)}: pip install 'maskformer[export]'.")


@dataclass(frozen=True)
class Exported:
    """What ``export`` wrote.

    Attributes:
        file: the model.
        description: the JSON beside it.
        proof: what was compared, in each program and size.
    """

    file: Path
    description: Path
    proof: tuple[Comparison, ...]


def export(
    source: str | Path,
    output: str | Path,
    weights: str | Path | None = None,
    *,
    task: str | None = None,
    size: Size | None = None,
    precision: str = "float32",
    calibration: str | Path | None = None,
    picture: str | Path | None = None,
    licence: str = "",
    **keys: Any,
) -> Exported:
    """Write a trained model as a file for another program, run the file, and keep it if it gives what the model gives.

    Args:
        source: as for ``load``.
        output: ``.onnx``, or ``.pt2`` for a program of ``torch.export``; a JSON of the same name is written beside it.
        weights: as for ``load``.
        task: see ``ExportOptions``, and so for the following.
        size: likewise.
        precision: likewise.
        calibration: likewise.
        picture: likewise.
        licence: likewise.
        **keys: as for ``load``, but for the device: the model is exported on the CPU.

    Raises:
        InputError: a mistake in the arguments, the file cannot be written, or it does not give what the model gives:
            then no file is written, and an earlier one stays as it was.
    """
    output = Path(output).expanduser()
    options = ExportOptions(task, size, precision, calibration, picture, licence)
    options.check(output)
    return write_export(load_plainly(source, weights, keys), output, options)


def load_plainly(source: str | Path, weights: str | Path | None, keys: Mapping[str, Any]) -> Predictor:
    """``load``, but on the CPU, and of what is done with the network no more than can be traced."""
    plain = {"MODEL.DEVICE": "cpu", "MODEL.COMPILE": "none", "MODEL.PRECISION": "float32", "TEST.AUG.ENABLED": False}
    return load(source, weights, **{**{key.replace("__", "."): value for key, value in keys.items()}, **plain})


@contextmanager
def _in_memory() -> Iterator[None]:
    """Turn a lack of memory into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            "The model needs more memory than there is for pictures of this size: give a smaller size, or with sizes "
            "that are free a lower INPUT.MIN_SIZE_TEST or smaller calibration pictures."
        ) from error


@_in_memory()
def write_export(
    predictor: Predictor, output: Path, options: ExportOptions, tell: Callable[[str], None] = SCREEN.info
) -> Exported:
    """What ``export`` does with a model that is loaded.

    Args:
        predictor: on the CPU, with a configuration.
        output: as for ``export``.
        options: checked.
        tell: is given a line of progress at a time.
    """
    cfg, model = predictor.cfg, innermost(predictor.model)
    assert cfg is not None
    order, precision = CHANNEL_ORDERS[cfg.INPUT.FORMAT], options.precision
    task = choose_task(model, options.task)
    picture = _read_picture(options.picture, predictor)
    views = views_of(picture, _shorter_side(picture.shape[:2], cfg), options.size)
    calibrating = [] if options.calibration is None else _find_pictures(options.calibration, predictor, options.size)
    description = describe_export(
        cfg,
        predictor.classes,
        task=task,
        size=options.size,
        precision=precision,
        opset=programs.OPSET if output.suffix == ".onnx" else None,
        licence=options.licence,
    )
    if predictor.model is not model:
        tell("MODEL.MASK_FORMER.TEST.SLIDING_WINDOW is not part of the file, which sees a picture whole")
    json_name = output.with_suffix(".json")
    _refuse_foreign(json_name)
    with whole(json_name) as json_file, whole(output) as file:
        json_file.write_text(json_text(description, indent=1) + "\n", encoding="utf-8")
        tell(f"Tracing the model: {task}, {precision}")
        traced = _with_half_network(model) if precision == "float16" else model
        program = programs.export_program(traced, task, size=options.size, channel_order=order)
        tell(f"Writing {output.suffix}")
        metadata = {KEY: json_text(description)}
        _forget_places(program)
        programs.write(program, file, metadata)
        logits = tidy(file) if output.suffix == ".onnx" else []
        if calibrating:
            tell(f"Calibrating int8 with {len(calibrating)} pictures of {options.calibration}")
            quantise(file, _calibrating(calibrating, predictor, options.size), metadata)
        tell(f"Running it beside the model, on {options.picture or 'the photograph that Matplotlib has'}")
        proof = []
        for comparison in compare(model, task, find_runners(file, logits), views, order):
            tell(str(comparison))
            comparison.check(LIMITS[precision], precision)
            proof.append(comparison)
    tell(f"Written: {output} ({output.stat().st_size / 1e6:.1f} MB), {json_name}")
    return Exported(output, json_name, tuple(proof))


def _refuse_foreign(json_name: Path) -> None:
    """Raise an ``InputError`` where the JSON would replace one that no export wrote."""
    if json_name.exists() and "maskformer_version" not in read_json(str(json_name)):
        raise InputError(f"{json_name} would be replaced, but no export wrote it: choose another name for the output.")


def _read_picture(picture: str | Path | None, predictor: Predictor) -> np.ndarray:
    """(height,width,3) uint8 RGB."""
    if picture is not None:
        return as_rgb(picture, predictor.bands)
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)  # public domain, in every wheel of Matplotlib's
    if not os.path.isfile(path):
        raise InputError("This Matplotlib comes without its photograph: name a picture to prove the file on (picture).")
    return as_rgb(path)


def _shorter_side(size: Size, cfg: CfgNode) -> int:
    """That a picture is proven with: the one that the model was tested with, if it is not too long."""
    shorter = min(cfg.INPUT.MIN_SIZE_TEST or _LONGEST_PROVEN, _LONGEST_PROVEN)
    return max(min(shorter, cfg.INPUT.MAX_SIZE_TEST * min(size) // max(size)), 1)


def _find_pictures(folder: str | Path, predictor: Predictor, size: Size | None) -> list[str]:
    """At most so many of a folder's pictures, evenly from first to last; each can be read and resized."""
    if not os.path.isdir(os.path.expanduser(folder)):
        raise InputError(f"calibration is {folder}; expected a folder with pictures.")
    names = [source.name for source in media.find_sources([os.fspath(folder)]) if not source.is_video]
    if not names:
        raise InputError(f"calibration is {folder}, a folder without a picture ({' '.join(media.IMAGE_SUFFIXES)}).")
    count = min(len(names), _MOST_CALIBRATING)
    chosen = [names[index * len(names) // count] for index in range(count)]
    for _ in _calibrating(chosen, predictor, size):
        pass
    return chosen


def _calibrating(names: list[str], predictor: Predictor, size: Size | None) -> Iterator[np.ndarray]:
    """(1,3,height,width) uint8 RGB each, resized as the model was tested, or to the size that the file asks for."""
    assert predictor.cfg is not None
    order = list(CHANNEL_ORDERS[predictor.cfg.INPUT.FORMAT])
    for name in names:
        rgb = as_rgb(name, predictor.bands)
        if size is None:
            try:
                pixels = predictor.example(rgb)["image"].numpy()[order]  # in RGB again
            except BadImageError as error:
                raise BadImageError(f"{name}: {error}") from error
        else:
            resized = Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(resized).transpose(2, 0, 1)
        yield np.ascontiguousarray(pixels[None])


def _forget_places(program: torch.export.ExportedProgram) -> None:
    """Take out of a program in which file and line of this machine each operation stands."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)


def _with_half_network(model: nn.Module) -> nn.Module:
    """A copy whose network has weights and products of float16; all else stays float32."""
    model = copy.deepcopy(model)
    for part in model.children():  # the model's own buffers, mean and deviation of pixels, would be rounded
        part.half()
    return model
