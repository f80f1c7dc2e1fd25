"""Which layout weights are in, told by their names, and how they come to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from maskformer.structures import InputError

from .backbones import DETECTRON2_RESNET, RESNET, SWIN
from .eomt import EOMT, EOMT_DINOV3, HUGGING_FACE_EOMT, HUGGING_FACE_EOMT_DINOV3
from .hugging_face import HUGGING_FACE, HUGGING_FACE_2
from .layout import Layout, StateDict
from .openmmlab import OPENMMLAB, OPENMMLAB_2
from .vision_transformers import HUGGING_FACE_VIT, VIT_RELEASE

_OLD_PIXEL_DECODER = re.compile(
    r"^((?:module\.)?sem_seg_head\.)(?=(?:adapter_\d|layer_\d|mask_features\.|input_proj\.|transformer\.))"
)
_OLD_QUERIES = re.compile(r"^((?:module\.)?sem_seg_head\.predictor\.)static_query\.")
# The parts of a head whose names mean something else in the two generations, and what only the second one has there.
_SECOND = {
    "sem_seg_head.pixel_decoder.": ".transformer.level_embed",
    "sem_seg_head.predictor.": ".decoder_norm.",
}


def rename_old_layout(state: StateDict) -> StateDict:
    """Bring older checkpoints, whose head held the pixel decoder's parameters itself, to today's names.

    Mask2Former's called ``query_feat`` ``static_query`` besides. It looks at the names alone: a state dict of plain
    arrays has no version to look at.

    Args:
        state: parameters by name, in the old layout, today's, or another model's.

    Returns:
        The same tensors in the same order; ``sem_seg_head.layer_1.weight``, for one, is now
        ``sem_seg_head.pixel_decoder.layer_1.weight``.
    """
    state = {_OLD_QUERIES.sub(r"\1query_feat.", name): tensor for name, tensor in state.items()}
    return {_OLD_PIXEL_DECODER.sub(r"\1pixel_decoder.", name): tensor for name, tensor in state.items()}


def parts_of_another_generation(names: Iterable[str], expected: Iterable[str]) -> list[str]:
    """The parts of a head that a file and a model both have, one of MaskFormer's kind and one of Mask2Former's.

    Args:
        names: the file's, as ours.
        expected: the model's.

    Returns:
        Beginnings of names. Names below them coincide by chance: ``adapter_1``, ``query_embed`` and others play other
        roles there.
    """

    def kinds(some: list[str]) -> dict[str, bool]:
        return {
            part: any(name.startswith(part) and mark in name for name in some)
            for part, mark in _SECOND.items()
            if any(name.startswith(part) for name in some)
        }

    ours = kinds(list(expected))
    return [part for part, is_second in kinds(list(names)).items() if ours.get(part, is_second) != is_second]


_INDEX = r"\.relative_position_index$"  # of converted files: it follows from the window's size
ORIGINAL = Layout(
    name="MaskFormer (this package or the original)",
    marks=(r"sem_seg_head\.",),
    convert=rename_old_layout,
    never_holds=_INDEX,
)
ORIGINAL_2 = Layout(
    name="Mask2Former (this package or the original)",
    marks=(r"sem_seg_head\.predictor\.decoder_norm\.",),
    convert=rename_old_layout,
    never_holds=_INDEX,
)
BACKBONE = Layout(
    "a backbone alone, by this package's names",
    marks=(r"(?:network\.encoder\.)?backbone\.(?:stem|patch_embed|network)\.",),
    convert=dict,
    backbone_only=True,
)
# The first that fits: what marks a Mask2Former comes with all that marks a MaskFormer, and DINOv3 with all of EoMT.
LAYOUTS = (
    *(HUGGING_FACE_2, HUGGING_FACE, OPENMMLAB_2, OPENMMLAB, ORIGINAL_2, ORIGINAL),
    *(HUGGING_FACE_EOMT_DINOV3, HUGGING_FACE_EOMT, EOMT_DINOV3, EOMT),
    *(BACKBONE, DETECTRON2_RESNET, RESNET, SWIN, HUGGING_FACE_VIT, VIT_RELEASE),
)
UNKNOWN = Layout("unknown", marks=(), convert=dict)


@dataclass(frozen=True)
class Conversion:
    """Weights by our names.

    Attributes:
        layout: what they were in.
        state: parameters by our names; what we have no name for keeps its own.
        renamed: how many names of ``state`` are new.
    """

    layout: Layout
    state: StateDict
    renamed: int


def strip_wrapper(state: StateDict) -> StateDict:
    """Remove the ``module.`` that ``DistributedDataParallel`` puts before every name, and ``torch.compile``'s mark."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()} if wrapped else state


def name_by_order(state: StateDict, backbone: nn.Module, source: str, *, prefix: str = "backbone.") -> StateDict:
    """Give a backbone's tensors, whose names are somebody else's, the right names by their order.

    Args:
        state: in the order of the file.
        backbone: what they are for: they get the names that its own files have.
        source: where they come from, for messages.
        prefix: of the backbone's parameters in the model.

    Raises:
        InputError: there are more or fewer than in the backbone's files, or one has another shape.
    """
    shapes: dict[str, torch.Size] = (
        backbone.file_shapes()  # type: ignore[operator]
        if hasattr(backbone, "file_shapes")
        else {f"{prefix}{name}": tensor.shape for name, tensor in backbone.state_dict().items()}
    )
    if len(shapes) != len(state):  # older files have no counters of batch norms
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    if len(shapes) != len(state):
        raise InputError(
            f"{source} holds {len(state)} tensors, but files of this backbone {len(shapes)}: they cannot be matched by "
            "their order. Take ?matching_order=True away, or set MODEL.WEIGHTS to another file."
        )
    for (theirs, tensor), (ours, shape) in zip(state.items(), shapes.items()):
        if tensor.shape != shape:
            raise InputError(
                f"In the order of {source}, {theirs} {tuple(tensor.shape)} stands where this backbone's files have "
                f"{ours} {tuple(shape)}: take ?matching_order=True away, or set MODEL.WEIGHTS to another file."
            )
    return dict(zip(shapes, state.values()))


def convert_weights(
    state: StateDict, source: str, *, may_be_unknown: bool = False, backbone: nn.Module | None = None
) -> Conversion:
    """Bring weights of any known layout to our names.

    Args:
        state: tensors by name.
        source: where they come from, for messages.
        may_be_unknown: whether weights in none of ``LAYOUTS`` are left as they are, with ``UNKNOWN`` as their layout.
        backbone: of the model that they are for. One that has files of its own has a method ``convert_weights``, which
            brings their tensors to the names of its state dict; it gets all that are of no whole model.

    Raises:
        InputError: they are in none of the layouts known, or of a variant of one that does not fit.
    """
    state = strip_wrapper(state)
    layout = next((layout for layout in LAYOUTS if layout.fits(state)), UNKNOWN)
    is_whole = layout in LAYOUTS and (not layout.backbone_only or layout is BACKBONE)
    if hasattr(backbone, "convert_weights") and not is_whole:
        layout = _layout_of_backbone(backbone, source)
    if layout is UNKNOWN and not may_be_unknown:
        raise InputError(f"The layout of {source} is not known. {explain_layouts(list(state))}")
    with explained(source):
        converted = layout.convert(state)
    return Conversion(layout, converted, renamed=len(converted.keys() - state.keys()))


def _layout_of_backbone(backbone: Any, source: str) -> Layout:
    def convert(state: StateDict) -> StateDict:
        try:
            return {f"backbone.{name}": tensor for name, tensor in backbone.convert_weights(state).items()}
        except InputError as error:
            raise InputError(f"Weights {source} do not fit the model's backbone: {error}") from error

    return Layout(f"{type(backbone).__name__}'s own files", marks=(), convert=convert, backbone_only=True)


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Have it said in a sentence that parameters are in a layout, but not all that it needs, or not of its shapes.

    Args:
        source: where they come from.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The parameters in {source} do not belong together ({str(error)[:500]}): some are missing or of other "
            "shapes than the rest. Set MODEL.WEIGHTS to the whole file."
        ) from error


def explain_layouts(names: Sequence[str]) -> str:
    """What to say of parameters that are in no known layout: some of their names, and the layouts known."""
    known = "; ".join(layout.name for layout in LAYOUTS)
    return (
        f"Parameters such as {', '.join(names[:4])} are in no layout that fits; known are: {known}. Set MODEL.WEIGHTS "
        "to weights in one of these, of this model or its backbone."
    )
