"""Safe loading of weights, and the one place that knows other people's parameter names.

A weights file is data: nothing in it is ever run. ``.pth`` is read by ``torch.load(weights_only=True)``, ``.pkl`` by an
unpickler that knows NumPy arrays and plain containers only, ``.safetensors`` by its own package.
"""

from __future__ import annotations

import collections
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor

from maskformer.structures import InputError

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# Where Detectron2 keeps what it calls detectron2://...
DETECTRON2_WEIGHTS = "https://dl.fbaipublicfiles.com/detectron2/"

# A parameter whose shape follows from one key: part of its name -> that key.
SHAPE_KEYS = {
    "class_embed": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "empty_weight": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "sem_seg_head.predictor.weight": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",  # the per-pixel baseline
    "sem_seg_head.predictor.bias": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "query_embed": "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
}


class Checkpointer(DetectionCheckpointer):
    """Saves and loads models, optimisers and progress; a file that does not fit the model is an ``InputError``.

    Detectron2's; the extension points that fvcore documents (``_load_file``, ``_load_model``) are made safe and strict.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint into the model and, of what else was given to the constructor, into ``checkpointables``.

        Args:
            path: file or URL; "" leaves the model as it is. ``?matching_heuristics=True`` at its end matches
                parameters by the ends of their names, as Detectron2 does for backbone weights.
            checkpointables: names; None for all.

        Returns:
            What else the file holds.

        Raises:
            InputError: the file is missing, cannot be fetched or read, or does not fit the model.
        """
        if path:
            self._require_file(path)
        return super().load(path, checkpointables)

    def _require_file(self, path: str) -> None:
        url = urlparse(path)
        self._source = path
        self._heuristics = parse_qs(url.query).get("matching_heuristics") == ["True"]
        plain_path = url._replace(query="").geturl()
        try:
            local_path = self.path_manager.get_local_path(plain_path)
        except (OSError, ValueError) as error:
            raise InputError(f"Weights {path} cannot be fetched ({error}); {_other_ways(path)}") from error
        if not os.path.isfile(local_path):
            raise InputError(f"Weights file {path} does not exist; {_other_ways(path)}")

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_weights(filename)
        if self._heuristics:
            content["matching_heuristics"] = True
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        expected = self.model.state_dict()
        self._by_name_endings = checkpoint.pop("matching_heuristics", False)
        state = checkpoint["model"] = rename_old_layout(checkpoint["model"])
        if self._by_name_endings:
            from_caffe2 = checkpoint.get("__author__") == "Caffe2"
            state = checkpoint["model"] = align_and_update_state_dicts(expected, state, c2_conversion=from_caffe2)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        incompatible = super()._load_model(checkpoint)
        mismatches = [*incompatible.incorrect_shapes, *_mismatches_by_name_endings(incompatible, shapes, expected)]
        if mismatches:
            raise InputError(_explain_shapes(mismatches, self._source))
        if not expected.keys() & state.keys():
            raise InputError(
                f"None of the {len(shapes)} parameters in {self._source} belongs to this model (the first there is "
                f"{next(iter(shapes))}, here {next(iter(expected))}); set MODEL.WEIGHTS to weights of this model."
            )
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        if missing:
            # That backbone weights hold no head is as it should be.
            usual = self._by_name_endings and not any(name.startswith("backbone.") for name in missing)
            level = logging.INFO if usual else logging.WARNING
            logger.log(level, "Not in %s, so left as initialised: %s", self._source, _summary(missing))
        if unexpected:
            level = logging.INFO if self._by_name_endings else logging.WARNING
            logger.log(level, "In %s but not in this model, so unused: %s", self._source, _summary(unexpected))


def rename_old_layout(state: StateDict) -> StateDict:
    """Bring older MaskFormer checkpoints, whose head held the pixel decoder's parameters itself, to today's names.

    It looks at the names alone: a state dict of plain arrays has no version to look at.

    Args:
        state: parameters by name, in the old layout, today's, or another model's.

    Returns:
        The same tensors in the same order; ``sem_seg_head.layer_1.weight``, for one, is now
        ``sem_seg_head.pixel_decoder.layer_1.weight``.
    """
    return {_OLD_PIXEL_DECODER.sub(r"\1pixel_decoder.", name): tensor for name, tensor in state.items()}


_OLD_PIXEL_DECODER = re.compile(
    r"^((?:module\.)?sem_seg_head\.)(?=(?:adapter_\d|layer_\d|mask_features\.|input_proj\.|transformer\.))"
)


def read_weights(filename: str) -> dict[str, Any]:
    """Read a weights file without running anything in it.

    Args:
        filename: ``.pkl`` (Detectron2's model zoo), ``.safetensors``, or else what ``torch.save`` wrote.

    Returns:
        ``model``, parameters by name, and what else the file holds. ``matching_heuristics`` marks backbone weights
        whose names are only the ends of a model's.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    read = READERS.get(os.path.splitext(filename)[1], _read_torch)
    content = read(filename)
    if isinstance(content, dict) and not isinstance(content.get("model"), dict):
        content = {"model": content}
    state = content.get("model") if isinstance(content, dict) else None
    if not state or not all(isinstance(value, (Tensor, np.ndarray)) for value in state.values()):
        raise InputError(
            f"Weights file {filename} holds no parameters; expected tensors by name, alone or under the key 'model'. "
            "Set MODEL.WEIGHTS to another file."
        )
    return {**content, "model": {name: torch.as_tensor(value) for name, value in state.items()}}


# What unpicklers raise for a truncated or foreign file.
_READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
)


def _read_torch(filename: str) -> Any:
    try:
        return torch.load(filename, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise _unreadable(filename, error) from error


def _read_pickle(filename: str) -> Any:
    try:
        with open(filename, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except _READ_ERRORS as error:
        raise _unreadable(filename, error) from error
    if isinstance(content, dict) and "model" not in content:  # Caffe2's and Detectron's own files
        blobs = content.get("blobs", content)
        state = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
        return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}
    return content


def _read_safetensors(filename: str) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"Weights file {filename} needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(filename)
    except (OSError, SafetensorError) as error:
        raise _unreadable(filename, error) from error


READERS: dict[str, Callable[[str], Any]] = {".pkl": _read_pickle, ".safetensors": _read_safetensors}


_ARRAY_PARTS = {
    "_codecs.encode",
    "collections.OrderedDict",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")  # NumPy 1 and NumPy 2
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    ),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and plain containers, and refuses everything else that a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that a pickle names, if it is one of the few that arrays need."""
        if f"{module}.{name}" not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}; only NumPy arrays and plain containers are read")
        return super().find_class(module, name)


def _unreadable(filename: str, error: Exception) -> InputError:
    # PyTorch advises, before and after the reason, to read the file unsafely.
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0].split(". Please use")[0]
    reason = reason or type(error).__name__
    return InputError(
        f"Weights file {filename} cannot be read: {reason}. It may be truncated or of another kind (expected .pth, "
        ".pkl or .safetensors); fetch it again or set MODEL.WEIGHTS to another file."
    )


def _other_ways(path: str) -> str:
    prefix = "detectron2://"
    if path.startswith(prefix):
        address = DETECTRON2_WEIGHTS + path[len(prefix) :]
        return f'download {address} and set MODEL.WEIGHTS to that file, or to "" to train from scratch.'
    return (
        f'set MODEL.WEIGHTS to a file that exists, or to "" to train from scratch (ImageNet weights of ResNet-50: '
        f"{DETECTRON2_WEIGHTS}ImageNetPretrained/torchvision/R-50.pkl)."
    )


Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]  # parameter, shape in the file, shape in the model


def _mismatches_by_name_endings(
    incompatible: Any, shapes: dict[str, tuple[int, ...]], expected: StateDict
) -> list[Mismatch]:
    """What Detectron2's matching by name endings leaves out, with no more than a warning, for its shape."""
    return [
        (missing, shapes[name], tuple(expected[missing].shape))
        for name in incompatible.unexpected_keys
        for missing in incompatible.missing_keys
        if missing.endswith(f".{name}")
    ]


def _explain_shapes(mismatches: list[Mismatch], source: str) -> str:
    name, in_file, in_model = mismatches[0]
    others = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
    key = next((key for part, key in SHAPE_KEYS.items() if part in name), None)
    remedy = f"change {key}" if key else "take the configuration file that these weights were trained with"
    return (
        f"Parameter {name}{others} has shape {in_file} in {source} but {in_model} in this model: {remedy}, set "
        "MODEL.WEIGHTS to other weights, or delete such parameters from the file to train them anew."
    )


def _summary(names: Iterable[str]) -> str:
    """One line for many names: how many there are under each beginning."""
    counts = collections.Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{beginning} ({count})" for beginning, count in counts.items())
