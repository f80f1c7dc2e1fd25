"""Which layout weights are in, told by their names, and how they come to ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from maskformer.structures import InputError

from .hugging_face import HUGGING_FACE
from .layout import Layout, StateDict
from .openmmlab import OPENMMLAB
from .original import BACKBONE, DETECTRON2_RESNET, ORIGINAL
from .resnet import RESNET
from .swin import SWIN

LAYOUTS = (HUGGING_FACE, OPENMMLAB, ORIGINAL, BACKBONE, DETECTRON2_RESNET, RESNET, SWIN)


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


def find_layout(names: Iterable[str]) -> Layout | None:
    """The layout that parameters of these names are in; None if it is none of ``LAYOUTS``."""
    names = list(names)
    return next((layout for layout in LAYOUTS if layout.fits(names)), None)


def strip_wrapper(state: StateDict) -> StateDict:
    """Remove the ``module.`` that ``DistributedDataParallel`` puts before every name."""
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()} if wrapped else state


def convert_weights(state: StateDict, source: str) -> Conversion:
    """Bring weights of any known layout to our names.

    Args:
        state: tensors by name.
        source: where they come from, for messages.

    Raises:
        InputError: they are in none of the layouts known, or of a variant of one that does not fit.
    """
    state = strip_wrapper(state)
    layout = find_layout(state)
    if layout is None:
        raise InputError(f"The layout of {source} is not known. {explain_layouts(list(state))}")
    with explained(source):
        converted = layout.convert(state)
    return Conversion(layout, converted, renamed=len(converted.keys() - state.keys()))


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
