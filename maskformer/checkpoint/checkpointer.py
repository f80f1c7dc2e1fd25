"""Puts weights of every known layout into a model, strictly, and saves checkpoints."""

from __future__ import annotations

import collections
import logging
import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import nn

from maskformer.structures import InputError

from .class_layer import Mismatch, find_class_mismatches
from .detection import explain_layouts, find_layout, strip_wrapper
from .layout import NOTHING, StateDict
from .reading import find_weights_file, read_weights

logger = logging.getLogger(__name__)

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

    Detectron2's; the extension points that fvcore documents (``_load_file``, ``_load_model``) are made safe and strict,
    and know every layout of ``detection.LAYOUTS``.

    Args:
        model: to load into and save.
        save_dir: where checkpoints are saved, and resumed from.
        fine_tuning: weights that differ from the model in the number of classes alone leave the class layer as it is
            initialised, with one line in the log. Training asks for it; evaluation and prediction do not, nor does a
            resumed training: there it is an error as any other difference always is.
        checkpointables: what else to save and resume, by name.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, fine_tuning: bool = False, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self._fine_tuning = fine_tuning
        self._new_classes_allowed = fine_tuning

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the last checkpoint in ``save_dir`` if ``resume`` and there is one, else load ``path``.

        Args:
            path: as for ``load``.
            resume: whether to look for a checkpoint.

        Returns:
            What else the file holds.
        """
        self._new_classes_allowed = self._fine_tuning and not (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._new_classes_allowed = self._fine_tuning

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint into the model and, of what else was given to the constructor, into ``checkpointables``.

        Args:
            path: file, URL, or folder that Hugging Face's ``save_pretrained`` wrote; "" leaves the model as it is.
                ``?matching_heuristics=True`` at its end matches parameters by the ends of their names, as Detectron2
                does for backbone weights.
            checkpointables: names; None for all.

        Returns:
            What else the file holds.

        Raises:
            InputError: the file is missing, cannot be fetched or read, is in no known layout, or does not fit the
                model.
        """
        if path:
            path = find_weights_file(path)
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
        state = checkpoint["model"] = self._to_model_names(checkpoint, expected)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if not expected.keys() & state.keys():
            raise InputError(
                f"None of the {len(shapes)} parameters in {self._source} belongs to this model (the first there is "
                f"{next(iter(shapes))}, here {next(iter(expected))}). {explain_layouts(list(shapes))}"
            )
        incompatible = super()._load_model(checkpoint)
        mismatches = list(incompatible.incorrect_shapes)
        if self._by_name_endings:
            mismatches += _mismatches_by_name_endings(incompatible, shapes, expected)
        if mismatches:
            self._accept_new_classes(mismatches, incompatible)
        return incompatible

    def _to_model_names(self, checkpoint: dict[str, Any], expected: StateDict) -> StateDict:
        state = strip_wrapper(checkpoint["model"])
        may_match_endings = checkpoint.pop("matching_heuristics", False)
        layout = find_layout(state)
        converted = layout.convert(state) if layout else state
        self._by_name_endings = may_match_endings and not converted.keys() & expected.keys()
        self._backbone_only = self._by_name_endings or (layout is not None and layout.backbone_only)
        self._never_holds = layout.never_holds if layout else NOTHING
        if self._by_name_endings:
            from_caffe2 = checkpoint.get("__author__") == "Caffe2"
            converted = align_and_update_state_dicts(expected, state, c2_conversion=from_caffe2)
        return converted

    def _accept_new_classes(self, mismatches: list[Mismatch], incompatible: Any) -> None:
        of_classes = find_class_mismatches(mismatches, self.model.state_dict()) if self._new_classes_allowed else []
        others = [mismatch for mismatch in mismatches if mismatch not in of_classes]
        if others:
            raise InputError(_explain_shapes(others, self._source))
        names = [name for name, *_ in of_classes]
        logger.warning(
            "Weights %s are of other classes (%s is %s there and %s here), so these are trained anew: %s",
            self._source, *of_classes[0], ", ".join(names),
        )  # fmt: skip
        incompatible.incorrect_shapes.clear()
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in names]

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        unexpected = incompatible.unexpected_keys
        missing = [name for name in incompatible.missing_keys if not re.search(self._never_holds, name)]
        if missing:
            # That backbone weights hold no head is as it should be.
            usual = self._backbone_only and not any(name.startswith("backbone.") for name in missing)
            level = logging.INFO if usual else logging.WARNING
            logger.log(level, "Not in %s, so left as initialised: %s", self._source, _summary(missing))
        if unexpected:
            level = logging.INFO if self._backbone_only else logging.WARNING
            logger.log(level, "In %s but not in this model, so unused: %s", self._source, _summary(unexpected))


def _other_ways(path: str) -> str:
    prefix = "detectron2://"
    if path.startswith(prefix):
        address = DETECTRON2_WEIGHTS + path[len(prefix) :]
        return f'download {address} and set MODEL.WEIGHTS to that file, or to "" to train from scratch.'
    return (
        f'set MODEL.WEIGHTS to a file that exists, or to "" to train from scratch (ImageNet weights of ResNet-50: '
        f"{DETECTRON2_WEIGHTS}ImageNetPretrained/torchvision/R-50.pkl)."
    )


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
