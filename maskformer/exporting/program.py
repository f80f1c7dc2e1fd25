"""A model as a program of ``torch.export``, and its files: ``.pt2`` for PyTorch, ``.onnx`` for others."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from maskformer.files import unfinished
from maskformer.structures import InputError

from .graph import SegmentationGraph

SUFFIXES = (".pt2", ".onnx")
OPSET = 20
INPUT_NAME = "images"
_AXES = {0: "batch", 2: "height", 3: "width"}
_EXAMPLE_SIZE = 96, 128  # that a program for all sizes is traced with; no result depends on it
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_MOST_BYTES = 2**31 - 1  # of a file in the format of ONNX


def export_program(
    model: nn.Module,
    task: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    channel_order: Sequence[int] = (0, 1, 2),
) -> torch.export.ExportedProgram:
    """Trace a model from pictures to results.

    Args:
        model: see ``SegmentationGraph``; it is put into evaluation mode, and the program shares its parameters.
        task: see ``choose_task``.
        size: (height, width) of pictures; None: any, from 1 x 1. Any number of pictures either way.
        channel_order: see ``SegmentationGraph``.

    Returns:
        It takes (B,3,height,width) uint8 RGB and gives a dict of tensors: see ``SegmentationGraph.forward``.

    Raises:
        InputError: the model cannot do the task, the size is none, or this PyTorch cannot export for all sizes.
    """
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise InputError(
            f"size is {size!r}; expected (height, width) in pixels, each 1 or more, or None for all sizes."
        )
    graph = SegmentationGraph(model, task, channel_order=channel_order).eval()
    example = torch.zeros(2, 3, *(size or _EXAMPLE_SIZE), dtype=torch.uint8, device=graph.pixel_mean.device)
    shapes: Any = _any_size() if size is None else {INPUT_NAME: {0: torch.export.Dim("batch")}}
    try:
        with torch.no_grad(), _tracing():
            program = torch.export.export(graph, (example,), dynamic_shapes=shapes)
    except RuntimeError as error:  # also what the exporter raises of its own
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"This model cannot be exported for {'all sizes' if size is None else f'pictures of {size}'} ({reason})"
            + ("; expected one size (--size 512x512)." if size is None else ".")
        ) from error
    for name, value in program.state_dict.items():
        if isinstance(value, nn.Parameter):  # else results want gradients; the model's own parameter stays as it is
            program.state_dict[name] = nn.Parameter(value.detach(), requires_grad=False)
    return program


def _any_size() -> Any:
    """The shapes of all batches of all pictures; sizes that are never looked at, so that 1 is like any other."""
    try:
        spec = importlib.import_module("torch.fx.experimental.dynamic_spec")
    except ImportError:
        raise InputError(
            f"PyTorch {torch.__version__} cannot export a model for all sizes; expected 2.14 or later, or one size "
            "(--size 512x512)."
        ) from None
    batch, height, width = (spec.ShapeVar(name, min=1) for name in _AXES.values())
    images = spec.TensorSpec([batch, 3, height, width])
    return spec.ShapesSpec(params=spec.ParamsSpec({INPUT_NAME: images}))


def write(program: torch.export.ExportedProgram, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a program into a file, which is there completely or not at all.

    Args:
        program: what ``export_program`` gave.
        path: ends in ".pt2" for ``torch.export.load``, or in ".onnx": opset 20, with an input "images", outputs named
            as those of the program, and axes "batch", "height" and "width" as far as they are free.
        metadata: texts that the file holds by name: ONNX's ``metadata_props``, ``extra_files`` of a ".pt2".

    Raises:
        InputError: the file has another ending, something is not installed, or the model is too large for the format.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix!r}; expected .pt2 (PyTorch) or .onnx (other programs).")
    if not path.parent.is_dir():
        raise InputError(f"{path}: its folder does not exist; expected a file in a folder that does.")
    with unfinished(path) as temporary:
        if path.suffix == ".pt2":
            torch.export.save(program, temporary, extra_files=dict(metadata or {}))
        else:
            _write_onnx(program, temporary, metadata or {}, str(path))


def _write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str], name: str) -> None:
    for needed in ("onnx", "onnxscript"):
        try:
            importlib.import_module(needed)
        except ImportError as error:
            raise InputError(f"{name} needs {needed} ({error}): pip install onnx onnxscript onnxruntime") from None
    num_bytes = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if num_bytes > _MOST_BYTES:
        raise InputError(
            f"{name} would hold {num_bytes / 2**30:.1f} GiB of weights; expected at most 2 GiB in a .onnx file: write "
            "a .pt2, or weights of 16 bits."
        )
    with _tracing():
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=output_names(program),
            dynamic_shapes={INPUT_NAME: _free_axes(program)},
        )
        assert written is not None
        written.model.metadata_props.update(metadata)
        written.save(path, external_data=False)


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Of the tensors that a program gives."""
    return list(program.call_spec.out_spec.context)


def _free_axes(program: torch.export.ExportedProgram) -> dict[int, str]:
    """The axes of the input that the program is not tied to one length of, and how they are named."""
    (images,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == INPUT_NAME)
    shape = images.meta["val"].shape
    return {axis: name for axis, name in _AXES.items() if not isinstance(shape[axis], int)}


@contextmanager
def _tracing() -> Iterator[None]:
    """Attention chooses no kernel, for which it would need sizes; hints for writers of exporters are not shown."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", _SHAPES)]
    levels = [logger.level for logger in loggers]
    # Before an error, PyTorch prints the whole graph.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
