"""Puts weights of every known layout into a model, strictly, and saves checkpoints."""

from __future__ import annotations

import collections
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from torch import nn

from maskformer.files import (
    CHECKSUM_SUFFIX,
    CheckpointWriteError,
    find_damage,
    remove_checkpoint,
    save_checkpoint,
    write_text,
)
from maskformer.structures import SCREEN, Classes, InputError

from .fitting import fit_to_model
from .layouts.detection import (
    Conversion,
    convert_weights,
    explain_layouts,
    explained,
    name_by_order,
    parts_of_another_generation,
    strip_wrapper,
)
from .layouts.layout import StateDict
from .layouts.vision_transformers import VIT
from .reading import LAST_CHECKPOINT, find_weights_file, has_order, read_weights, tagged_in

logger = logging.getLogger(__name__)

# Where Detectron2 keeps what it calls detectron2://...
DETECTRON2_WEIGHTS = "https://dl.fbaipublicfiles.com/detectron2/"

# A parameter whose shape follows from one key: part of its name -> that key.
SHAPE_KEYS = {
    "class_embed": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "class_head": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "empty_weight": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "sem_seg_head.predictor.weight": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",  # the per-pixel baseline
    "sem_seg_head.predictor.bias": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "query_embed": "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    "query_feat": "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    "network.q.": "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    "attn_mask_probs": "MODEL.EOMT.NUM_BLOCKS",
    "reg_token": "MODEL.EOMT.NUM_REGISTERS",
}

# What belongs to the classes in each head; of PerPixelBaselinePlusHead, whose queries are classes, the queries.
_HEAD = "sem_seg_head.predictor."
_CLASS_LAYERS = (
    (f"{_HEAD}class_embed.weight", f"{_HEAD}class_embed.bias", "criterion.empty_weight"),
    ("network.class_head.weight", "network.class_head.bias", "criterion.empty_weight"),
    (f"{_HEAD}weight", f"{_HEAD}bias"),
    (f"{_HEAD}query_embed.weight",),
)
Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]  # parameter, shape in the file, shape in the model

NUMBERED = re.compile(r"model_(\d{7,})\.pth")  # what is saved every SOLVER.CHECKPOINT_PERIOD, by iteration


def refuse_unknown_weights(folder: str, weights: str) -> None:
    """Refuse to resume in a folder of checkpoints that are not known as such: a new run would overwrite them.

    Args:
        folder: of the run, OUTPUT_DIR.
        weights: MODEL.WEIGHTS, which may lie there before the first start.

    Raises:
        InputError: it holds ``.pth`` files without checksums, and no ``last_checkpoint`` says which of them is meant.
    """
    unknown = _unknown_weights(folder, but=weights)
    if unknown and tagged_in(folder) is None:
        raise InputError(
            f"{folder} holds {', '.join(unknown)} but no {LAST_CHECKPOINT} that says which to resume, and no checksums "
            f"of them: write the name of the one to go on with into {os.path.join(folder, LAST_CHECKPOINT)}, or start "
            "anew, without --resume or in another OUTPUT_DIR."
        )


def refuse_checkpoints(folder: str) -> None:
    """Refuse a folder with checkpoints to a run that starts anew, but would resume what is there after a restart.

    Raises:
        InputError: there are some.
    """
    tagged = tagged_in(folder)
    names = _weights_in(folder, with_checksum=True) if tagged is None else [tagged]
    if names:
        raise InputError(
            f"OUTPUT_DIR is {folder}, which holds {names[-1]} of an earlier run. torchrun may start this run again "
            "(--max-restarts), and then it would go on from there: add --resume to go on with the earlier run, or set "
            "OUTPUT_DIR to another folder."
        )


def model_content(model: nn.Module) -> dict[str, Any]:
    """What every file of a model holds: its weights and, where it knows them, its classes."""
    classes: Classes | None = getattr(model, "classes", None)
    content = {"model": model.state_dict()}
    return content if classes is None else {**content, "classes": classes.to_plain()}


def _weights_in(folder: str, *, with_checksum: bool) -> list[str]:
    """Names of a folder's ``.pth`` files that have a checksum beside them, or have none."""
    names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return sorted(
        name
        for name in names
        if name.endswith(".pth") and name[0] != "." and (name + CHECKSUM_SUFFIX in names) == with_checksum
    )


def _unknown_weights(folder: str, but: str) -> list[str]:
    """Names of the weights files in a folder that have no checksum beside them, but for one file."""
    names = _weights_in(folder, with_checksum=False)
    return [name for name in names if os.path.realpath(os.path.join(folder, name)) != os.path.realpath(but)]


class Checkpointer(DetectionCheckpointer):
    """Saves and loads models, optimisers and progress; a file that does not fit the model is an ``InputError``.

    Detectron2's; the extension points that fvcore documents (``_load_file``, ``_load_model``) are made safe and strict,
    and know every layout of ``LAYOUTS``.

    A model that has an attribute ``classes`` (``Classes`` or None) has it saved, and set by what a file says.

    Args:
        model: to load into and save.
        save_dir: where checkpoints are saved, and resumed from.
        fine_tuning: weights that differ from the model in the number of classes alone leave the class layer as it is
            initialised, and those of a MaskFormer leave a Mask2Former's head so (or the other way round), with one line
            in the log. Training asks for it; evaluation and prediction do not, nor does a resumed training: there it is
            an error as any other difference always is.
        keep_last: how many checkpoints named by their iteration stay; 0: all. Others (model_final, model_best) do.
        checkpointables: what else to save and resume, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        fine_tuning: bool = False,
        keep_last: int = 0,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        if keep_last < 0:
            raise InputError(f"SOLVER.KEEP_LAST is {keep_last}, expected 0 (all checkpoints stay) or more.")
        self._fine_tuning = fine_tuning
        self._may_start_anew = fine_tuning
        self._keep_last = keep_last
        self._numbered: list[str] = []  # of this run, the oldest first
        self._weights = ""  # what is not to be resumed, though it may lie in the folder

    def save(self, name: str, **kwargs: Any) -> None:
        """Save model and checkpointables; to be called in all processes, whose states are in the one file.

        Args:
            name: of the file in ``save_dir``, without its ending. It is then the last checkpoint.
            kwargs: what else to save.

        Raises:
            CheckpointWriteError: in all processes, if the disk refused; the last checkpoint is then as it was.
        """
        if not self.save_dir:
            return
        states = {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        content = {**model_content(self.model), **states, **kwargs}
        problem = self._write(f"{name}.pth", content)
        problem = comm.all_gather(problem)[0]
        if problem is not None:
            raise CheckpointWriteError(*problem)

    def _write(self, basename: str, content: dict[str, Any]) -> tuple[Any, ...] | None:
        """Write in the main process; gives what the error says, if there was one."""
        if not self.save_to_disk:
            return None
        SCREEN.info("saving checkpoint %s", os.path.join(self.save_dir, basename))
        try:
            save_checkpoint(content, os.path.join(self.save_dir, basename))
            self.tag_last_checkpoint(basename)
        except CheckpointWriteError as error:
            return error.errno, error.strerror, error.filename
        self._remove_oldest(basename)
        return None

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Say which file is the last checkpoint, in the file that Detectron2 uses for it."""
        write_text(os.path.join(self.save_dir, LAST_CHECKPOINT), last_filename_basename)

    def _remove_oldest(self, saved: str) -> None:
        if not NUMBERED.fullmatch(saved) or not self._keep_last:
            return
        self._numbered = [name for name in self._numbered if name != saved] + [saved]
        for name in self._numbered[: -self._keep_last]:
            remove_checkpoint(os.path.join(self.save_dir, name))
        self._numbered = self._numbered[-self._keep_last :]

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume: a checkpoint tagged as the last, or one with a checksum beside it."""
        return tagged_in(self.save_dir) is not None or bool(self._saved_here())

    def get_checkpoint_file(self) -> str:
        """The last checkpoint that is as it was written; the log names those that are not.

        Where ``last_checkpoint`` is lost or damaged, it is the one of the highest iteration, whatever the files' times.

        Raises:
            InputError: there are checkpoints, but none is whole, or they are weights that this class did not write.
        """
        # One process reads: many at once would only wait for the disk. An error is told to all before it is raised.
        found, problem = comm.all_gather(self._find_last_good() if comm.is_main_process() else ("", ""))[0]
        if problem:
            raise InputError(problem)
        return os.path.join(self.save_dir, found)

    def _find_last_good(self) -> tuple[str, str]:
        """The name of a checkpoint, or else what is wrong with all of them."""
        damages: list[str] = []
        for name in self._candidates():
            path = os.path.join(self.save_dir, name)
            damage = find_damage(path)
            try:
                if damage is None and not os.path.exists(path + CHECKSUM_SUFFIX):  # of an earlier version
                    read_weights(path)
            except InputError as error:
                damage = f"cannot be read ({error})"
            if damage is None:
                if damages:
                    logger.warning("Resuming from %s instead, the last checkpoint that is whole.", name)
                return name, ""
            damages.append(f"{name} {damage}")
            logger.warning("Checkpoint %s %s.", path, damage)
            others = [other for other in _unknown_weights(self.save_dir, but=self._weights) if other != name]
            if others:  # the right one may be among these
                damages.append(f"{', '.join(others)} came without a checksum")
                break
        reasons = "; ".join(damages) or f"{', '.join(self._saved_here())} hold weights without a training's state"
        return "", (
            f"None of the checkpoints in {self.save_dir} can be resumed: {reasons}. Put a good one there and its name "
            f"into {LAST_CHECKPOINT}, or start anew without --resume, with MODEL.WEIGHTS set to the weights to take."
        )

    def _candidates(self) -> Iterator[str]:
        """Names of checkpoints: the one that is tagged as the last, then the others from the highest iteration on."""
        tagged = tagged_in(self.save_dir)
        if tagged is not None:
            yield tagged
        else:
            logger.warning(
                "%s has no %s that names a file: the highest iteration counts.", self.save_dir, LAST_CHECKPOINT
            )
        iterations = {name: self._iteration_of(name) for name in self._saved_here() if name != tagged}
        yield from sorted((name for name in iterations if iterations[name] >= 0), key=lambda name: -iterations[name])

    def _iteration_of(self, name: str) -> float:
        """The last iteration before a checkpoint; -1 of weights alone; infinite of a damaged file, to be looked at."""
        if match := NUMBERED.fullmatch(name):
            return int(match[1])
        try:
            content = read_weights(os.path.join(self.save_dir, name))
        except InputError:
            return math.inf
        state = content.get("trainer")
        iteration = (state if isinstance(state, dict) else content).get("iteration")
        return iteration if isinstance(iteration, int) else -1

    def _saved_here(self) -> list[str]:
        return _weights_in(self.save_dir, with_checksum=True)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the last checkpoint in ``save_dir`` if ``resume`` and there is one, else load ``path``.

        Args:
            path: as for ``load``.
            resume: whether to look for a checkpoint.

        Returns:
            What else the file holds.

        Raises:
            InputError: see ``load``, ``get_checkpoint_file`` and ``refuse_unknown_weights``; or what is to be resumed
                holds weights alone.
        """
        self._weights = path
        if resume:
            refuse_unknown_weights(self.save_dir, path)
        resumes = resume and self.has_checkpoint()
        self._may_start_anew = self._fine_tuning and not resumes
        try:
            if not resumes:
                return self.load(path, checkpointables=[])
            checkpoint = self.get_checkpoint_file()
            rest = self.load(checkpoint)
            if not self.checkpointables.keys() <= self._held:
                raise InputError(
                    f"{checkpoint} holds weights but no training's state, so it cannot be resumed: name another in "
                    f"{LAST_CHECKPOINT}, or start anew without --resume, with MODEL.WEIGHTS set to this file."
                )
            last = self._iteration_of(os.path.basename(checkpoint))
            numbered = filter(NUMBERED.fullmatch, self._saved_here())
            self._numbered = [name for name in numbered if self._iteration_of(name) <= last]
            return rest
        finally:
            self._may_start_anew = self._fine_tuning

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint into the model and, of what else was given to the constructor, into ``checkpointables``.

        Args:
            path: file, URL, or folder (see ``find_weights_file``); "" leaves the model as it is.
                ``?matching_heuristics=True`` at its end matches parameters by the ends of their names, as Detectron2
                does for backbone weights; ``?matching_order=True`` takes a backbone's tensors in the order of the file,
                whatever they are called there, if all their shapes agree.
            checkpointables: names; None for all.

        Returns:
            What else the file holds.

        Raises:
            InputError: the file is missing, cannot be fetched or read, is in no known layout, or does not fit the
                model.
        """
        if not path:
            return super().load(path, checkpointables)
        path = find_weights_file(path)
        url = urlparse(path)
        self._source = path
        query = parse_qs(url.query)
        self._heuristics, self._by_order = (
            query.get(word) == ["True"] for word in ("matching_heuristics", "matching_order")
        )
        plain_path = url._replace(query="").geturl()
        try:
            local_path = self.path_manager.get_local_path(plain_path)
        except (OSError, ValueError) as error:
            raise InputError(f"Weights {path} cannot be fetched ({error}); {_other_ways(path)}") from error
        if not os.path.isfile(local_path):
            raise InputError(f"Weights file {path} does not exist; {_other_ways(path)}")
        damage = find_damage(local_path)
        if damage is not None:
            raise InputError(
                f"Weights file {path} {damage}. Take another file, or delete {path}{CHECKSUM_SUFFIX} if you changed it."
            )
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if self._by_order and not has_order(filename):
            raise InputError(
                f"{filename} does not keep the order of its parameters (.safetensors sorts them anew), so that "
                "?matching_order=True has no meaning: take it away, or set MODEL.WEIGHTS to a file of torch.save."
            )
        content = read_weights(filename)
        self._held = frozenset(content)
        if self._heuristics:
            content["matching_heuristics"] = True
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        expected = self.model.state_dict()
        state = checkpoint["model"] = self._to_model_names(checkpoint, expected)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if all(name.startswith("criterion.") for name in expected.keys() & state.keys()):
            raise InputError(
                f"None of the {len(shapes)} parameters in {self._source} belongs to this model (the first there is "
                f"{next(iter(shapes))}, here {next(iter(expected))}). {explain_layouts(list(shapes))}"
            )
        incompatible = super()._load_model(checkpoint)
        mismatches = list(incompatible.incorrect_shapes)
        if self._by_name_endings:  # Detectron2 leaves out what does not fit, with no more than a warning
            mismatches += [
                (missing, shapes[name], tuple(expected[missing].shape))
                for name in incompatible.unexpected_keys
                for missing in incompatible.missing_keys
                if missing.endswith(f".{name}")
            ]
        if mismatches:
            self._accept_new_classes(mismatches, incompatible)
        if hasattr(self.model, "classes"):
            self._take_classes(Classes.from_plain(checkpoint.get("classes"), self._source))
        return incompatible

    def _take_classes(self, stored: Classes | None) -> None:
        """Keep what a file says of the model's classes, and what the datasets say that it was built for.

        In evaluation and prediction, the weights are right. A training has the classes of its datasets: to resume it
        with others is an error, and to start from weights of others is fine-tuning.
        """
        ours: Classes | None = self.model.classes
        if stored is None or (ours is not None and len(ours) != len(stored)):
            return
        difference = ours.difference(stored) if ours is not None else None
        if ours is None or (difference and not self._fine_tuning):
            self.model.classes = stored
        elif not difference:
            self.model.classes = ours.completed_by(stored)
        elif self._may_start_anew:
            logger.warning("Weights are of other classes, whose class layer is trained on: %s", difference)
        else:
            raise InputError(
                f"The checkpoint to resume is of other classes: {difference}; expected the same names in the same "
                "order: change DATASETS.TRAIN, or start anew without --resume."
            )

    def _to_model_names(self, checkpoint: dict[str, Any], expected: StateDict) -> StateDict:
        may_match_endings = checkpoint.pop("matching_heuristics", False)
        backbone = getattr(self.model, "backbone", None)
        if self._by_order and backbone is not None:
            place = next(name for name, module in self.model.named_modules() if module is backbone)
            state = strip_wrapper(checkpoint["model"])
            checkpoint["model"] = name_by_order(state, backbone, self._source, prefix=f"{place}.")
        conversion = convert_weights(checkpoint["model"], self._source, may_be_unknown=True, backbone=backbone)
        self._by_name_endings = may_match_endings and not conversion.state.keys() & expected.keys()
        self._backbone_only = self._by_name_endings or conversion.layout.backbone_only
        self._never_holds = conversion.layout.never_holds
        if not self._by_name_endings:
            foreign = parts_of_another_generation(conversion.state, expected)
            if foreign:
                return self._without(foreign, conversion, checkpoint)
            return fit_to_model(conversion, self.model, self._source)
        from_caffe2 = checkpoint.get("__author__") == "Caffe2"
        with explained(self._source):
            state = strip_wrapper(checkpoint["model"])
            return align_and_update_state_dicts(expected, state, c2_conversion=from_caffe2)

    def _without(self, foreign: list[str], conversion: Conversion, checkpoint: dict[str, Any]) -> StateDict:
        """Leave the other generation's parts of a head out, where the model's may start anew."""
        parts = " and ".join(part.rstrip(".") for part in foreign)
        if not self._may_start_anew:
            raise InputError(
                f"Weights {self._source} ({conversion.layout.name}) have another generation's {parts} than this model. "
                "Take the configuration file that they were trained with (its MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME "
                "and MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME), or other weights; a new training may start from them."
            )
        logger.warning(
            "Weights %s (%s) have another generation's %s than this model, whose names mean something else: trained "
            "anew here", self._source, conversion.layout.name, parts,
        )  # fmt: skip
        if _HEAD in foreign:
            checkpoint.pop("classes", None)
            foreign = [*foreign, "criterion."]
        return {name: value for name, value in conversion.state.items() if not name.startswith(tuple(foreign))}

    def _accept_new_classes(self, mismatches: list[Mismatch], incompatible: Any) -> None:
        """Leave parameters of another number of classes as they are initialised, where that is allowed."""
        of_classes: list[Mismatch] = []
        if self._may_start_anew:
            ours = self.model.state_dict().keys()
            layer = next((layer for layer in _CLASS_LAYERS if layer[0] in ours), ())
            of_classes = [found for found in mismatches if found[0] in layer and found[1][1:] == found[2][1:]]
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
            usual = self._backbone_only and not any(name.startswith(("backbone.", VIT)) for name in missing)
            level = logging.INFO if usual else logging.WARNING
            logger.log(level, "Not in %s, so left as initialised: %s", self._source, _summary(missing))
        if unexpected:
            level = logging.INFO if self._backbone_only else logging.WARNING
            logger.log(level, "In %s but not in this model, so unused: %s", self._source, _summary(unexpected))


def _other_ways(path: str) -> str:
    address = path.replace("detectron2://", DETECTRON2_WEIGHTS)
    if "://" in address:
        return f'download {address} and set MODEL.WEIGHTS to that file, or to "" to train from scratch.'
    return (
        f'set MODEL.WEIGHTS to a file that exists, or to "" to train from scratch (ImageNet weights of ResNet-50: '
        f"{DETECTRON2_WEIGHTS}ImageNetPretrained/torchvision/R-50.pkl)."
    )


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
