"""A folder that holds a whole model: weights, configuration, preprocessing and a card; and what such folders hold."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors.torch import save_file
from torch import Tensor

from maskformer.checkpoint.layouts.hugging_face import to_hugging_face
from maskformer.checkpoint.reading import CLASSES_METADATA, SHARD_INDEX, find_weights_file
from maskformer.config import default_config, load_config
from maskformer.config.bands import read_bands
from maskformer.files import unfinished
from maskformer.structures import Bands, Classes, InputError, check_choice

from .hugging_face_config import class_names_of, describe_model, describe_preprocessing, read_description, read_json
from .model_card import write_card

CONFIGURATION = "config.yaml"
DESCRIPTION, PREPROCESSING, WEIGHTS, CARD = (
    "config.json", "preprocessor_config.json", "model.safetensors", "README.md",
)  # fmt: skip
WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".safetensors", ".index.json")
LAYOUTS = ("maskformer", "hugging-face")


def find_model(source: str | Path, options: Sequence[Any] = ()) -> CfgNode:
    """The configuration of a model, with MODEL.WEIGHTS.

    Args:
        source: a configuration file; the output folder of a training; a folder that ``write_folder`` or Hugging Face's
            ``save_pretrained`` wrote; or weights in one of these.
        options: KEY VALUE KEY VALUE ...

    Raises:
        InputError: it is nothing of this.
    """
    path = os.fspath(source)
    if not os.path.exists(path):
        raise InputError(
            f"{path} does not exist; expected a configuration file, or a folder with a model. Nothing is fetched here: "
            "of a model on Hugging Face's hub, `hf download NAME --local-dir FOLDER` makes such a folder."
        )
    folder = _folder_of(path)
    if os.path.isfile(folder):
        return load_config(folder, options)
    described = [os.path.join(folder, name) for name in (CONFIGURATION, DESCRIPTION, PREPROCESSING)]
    if not any(map(os.path.isfile, described[:2])):
        raise InputError(
            f"There is no {described[0]}, which a training and save_pretrained write, and no {DESCRIPTION} of Hugging "
            "Face's; expected one of them: give the configuration's file, and the weights beside it."
        )
    is_ours = os.path.isfile(described[0])
    keys = [] if is_ours else read_description(*described[1:])
    if "MODEL.WEIGHTS" not in options[::2]:
        keys += ["MODEL.WEIGHTS", find_weights_file(path)]
    return load_config(described[0] if is_ours else "", [*keys, *options])


def described_classes(source: str | Path) -> Classes | None:
    """The classes that a folder of Hugging Face's names; None: it is none."""
    file = os.path.join(_folder_of(os.fspath(source)), DESCRIPTION)
    return Classes(f"folder {source}", tuple(class_names_of(file))) if os.path.isfile(file) else None


def described_bands(source: str | Path) -> Bands | None:
    """How a folder that ``write_folder`` wrote says that pictures are read; None: as plain ones.

    Raises:
        InputError: it says what makes no sense.
    """
    file = os.path.join(_folder_of(os.fspath(source)), PREPROCESSING)
    return read_bands(file, read_json(file)) if os.path.isfile(file) else None


def _folder_of(source: str) -> str:
    """The folder that weights lie in; anything else is as it is."""
    return os.path.dirname(source) if source.endswith(WEIGHTS_SUFFIXES) else source


def write_folder(
    folder: Path,
    state: Mapping[str, Tensor],
    cfg: CfgNode,
    classes: Classes | None,
    *,
    layout: str = "maskformer",
    licence: str = "",
    max_shard_bytes: int = 5 * 2**30,
    bands: Bands | None = None,
) -> list[str]:
    """Write a model as a folder.

    Args:
        folder: created where it is missing.
        state: parameters by our names.
        cfg: of the model.
        classes: the model's; None: not known.
        layout: one of ``LAYOUTS``.
        licence: of the weights; "": not stated.
        max_shard_bytes: larger weights are divided.
        bands: how pictures are read, which ``described_bands`` gives; Hugging Face's programs do not know of it.

    Returns:
        Names of the parameters that Hugging Face has no place for.

    Raises:
        InputError: a file cannot be written, or Hugging Face has no such model.
    """
    check_choice(layout, LAYOUTS, "layout")
    _check_place(folder, DESCRIPTION if layout == "maskformer" else CONFIGURATION)
    left_out: list[str] = []
    if layout == "hugging-face":
        texts = {DESCRIPTION: json.dumps(describe_model(cfg, classes), indent=2)}
        state, left_out = to_hugging_face(dict(state))
    else:
        texts = {CONFIGURATION: _portable(cfg).dump()}
    texts[PREPROCESSING] = json.dumps({**describe_preprocessing(cfg), **(bands.to_plain() if bands else {})}, indent=2)
    texts[CARD] = write_card(cfg, classes, layout=layout, licence=licence)
    _write_divided(folder, state, classes, max_shard_bytes)
    for name, text in texts.items():
        with whole(folder / name) as path:
            path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return left_out


def _check_place(folder: Path, foreign: str) -> None:
    """Refuse a folder that a training, or a model of the other layout, has."""
    for name in (foreign, "last_checkpoint"):
        if (folder / name).exists():
            raise InputError(f"Folder {folder} has {name}, of another model or a training: choose another folder.")


def _portable(cfg: CfgNode) -> CfgNode:
    """A configuration without what belongs to the machine that it was used on."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "auto", default_config().OUTPUT_DIR
    cfg.MODEL.EOMT.DELTA_BASE = ""  # what is written is whole
    cfg.DATASETS.OWN = CfgNode()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    return cfg


def write_weights(path: Path, state: Mapping[str, Tensor], classes: Classes | None = None) -> None:
    """Write a ``.pth`` or ``.safetensors`` file, with classes where they are known.

    Raises:
        InputError: it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole(path) as temporary:
        if path.suffix == ".pth":
            content = {"model": tensors} if classes is None else {"model": tensors, "classes": classes.to_plain()}
            torch.save(content, temporary)
        else:
            metadata = {} if classes is None else {CLASSES_METADATA: json.dumps(classes.to_plain())}
            save_file(tensors, temporary, metadata={"format": "pt", **metadata})


def _write_divided(folder: Path, state: Mapping[str, Tensor], classes: Classes | None, most: int) -> None:
    """Write one file, or several and an index, as Hugging Face names them; those of an earlier model go."""
    shards = _divide(state, most)
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    names = [WEIGHTS] if len(shards) == 1 else names
    for earlier in [folder / WEIGHTS, folder / SHARD_INDEX, *folder.glob("model-*-of-*.safetensors")]:
        earlier.unlink(missing_ok=True)
    for name, shard in zip(names, shards, strict=True):
        write_weights(folder / name, shard, classes)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        with whole(folder / SHARD_INDEX) as path:
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _divide(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under, which becomes ``path``; folders are created.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): choose another place.") from error
