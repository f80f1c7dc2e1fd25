"""Reading weights files safely: a weights file is data, and nothing in it is ever run.

``.safetensors`` holds tensors alone. What ``torch.save`` wrote, and any pickle (``.pkl``), is read by our own
``unpickling``: nothing is imported or called that a file names, ``stored`` checks and makes the arrays and tensors, and
memory stays within a small multiple of the file's size. Which of the three a file is, its first bytes say.

A file that asks for anything else is refused by name. Whoever trusts its maker sets the environment variable
MASKFORMER_TRUSTED_WEIGHTS to the path of that one file (more than one: separated as in PATH). It is no configuration
key, because a configuration file may come from where the weights do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import tarfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskformer.structures import InputError

from .stored import MAGIC, NUMBERS, describe_dtype, read_torch_or_pickle
from .unpickling import EntryError, ForeignNameError

TRUSTED_FILES_VARIABLE = "MASKFORMER_TRUSTED_WEIGHTS"
CLASSES_METADATA = "maskformer.classes"  # of a .safetensors file: JSON of what ``Classes.to_plain`` gives
_STATE_KEYS = ("model", "state_dict")  # Detectron2 and Swin; OpenMMLab and timm
_MAX_SAFETENSORS_HEADER = 10 * 2**20  # bytes; some hundred for each tensor
_MAX_PARAMETERS = 20_000  # of which some match every one with all of a model's; the largest models have 2,000
SHARD_INDEX = "model.safetensors.index.json"  # of weights that are divided into several files: which holds what
_INDEX_END = ".index.json"
_FOLDER_FILES = (
    "model.safetensors",
    SHARD_INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # Hugging Face's
LAST_CHECKPOINT = "last_checkpoint"  # the file that names the last of a training, for Detectron2 too
_IN_PACKAGE = "package://"
_MAX_INDEX_BYTES = 10 * 2**20


def find_weights_file(path: str) -> str:
    """The weights file, or the index of several, of a folder; of a file, itself.

    Args:
        path: what ``save_pretrained`` wrote, or a training: of that, its last checkpoint, which need not be its best.
            "package://NAME/PATH" is the file PATH in the folder of NAME, an installed Python package, which is not
            imported for it.

    Raises:
        InputError: a folder holds no such file, or no such package is installed.
    """
    if path.startswith(_IN_PACKAGE):
        path = _find_in_package(path)
    if not os.path.isdir(path):
        return path
    for name in (*_FOLDER_FILES, tagged_in(path), "model_final.pth"):
        if name is not None and os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise InputError(
        f"Folder {path} holds no weights; expected {' or '.join(_FOLDER_FILES[::2])}, the index of several such, or a "
        f"training's {LAST_CHECKPOINT} or model_final.pth: set MODEL.WEIGHTS to a file."
    )


def _find_in_package(path: str) -> str:
    name, _, inside = path.removeprefix(_IN_PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"Weights {path} are in the Python package {name!r}, which is not installed here: install it, or set "
            "MODEL.WEIGHTS to a file."
        )
    return os.path.join(spec.submodule_search_locations[0], inside)


def tagged_in(folder: str) -> str | None:
    """The name in a folder's ``last_checkpoint``; None where there is none that can be a file's."""
    path = os.path.join(folder, LAST_CHECKPOINT)
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        content = file.read(1000).strip()
    name = os.path.basename(content.decode(errors="replace"))
    return name if name and name.isprintable() and "\ufffd" not in name else None


def has_order(filename: str) -> bool:
    """Whether a weights file keeps the order that its parameters were saved in; ``.safetensors`` sorts them anew."""
    with open(filename, "rb") as file:
        return file.read(9)[8:] != b"{" and not filename.endswith(_INDEX_END)


def read_weights(filename: str) -> dict[str, Any]:
    """Read a weights file without running anything in it.

    Args:
        filename: ``.pkl`` (Detectron2's model zoo), ``.safetensors``, the ``.index.json`` of weights in several files,
            or else what ``torch.save`` wrote.

    Returns:
        ``model``, parameters by name, and what else the file holds. ``matching_heuristics`` marks backbone weights
        whose names are only the ends of a model's.

    Raises:
        InputError: the file cannot be read, asks to run something, or holds something else.
    """
    try:
        content = _read_trusted(filename) if _is_trusted(filename) else _read_safely(filename)
    except InputError:  # of one of several files
        raise
    except Exception as error:  # readers raise whatever a truncated or foreign file leads them to
        raise _unreadable(filename, error) from error
    state, rest = _split_state(content)
    if not state or not any(isinstance(value, (Tensor, np.ndarray, np.generic)) for value in state.values()):
        raise InputError(
            f"Weights file {filename} holds no parameters; expected tensors by name, alone or under the key "
            f"{' or '.join(map(repr, _STATE_KEYS))}. Set MODEL.WEIGHTS to another file."
        )
    if len(state) > _MAX_PARAMETERS:
        raise InputError(
            f"Weights file {filename} holds {len(state)} parameters, expected at most {_MAX_PARAMETERS}. Set "
            "MODEL.WEIGHTS to another file."
        )
    return {**rest, "model": {name: _to_tensor(name, value, filename) for name, value in state.items()}}


def _to_tensor(name: Any, value: Any, filename: str) -> Tensor:
    if not isinstance(name, str):
        fault = f"has a name of type {type(name).__name__}, expected text"
    elif not isinstance(value, (Tensor, np.ndarray, np.generic)):
        fault = f"is of type {type(value).__name__}, expected a tensor or an array"
    else:
        try:
            tensor = torch.as_tensor(value)
            if tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in NUMBERS:
                return tensor
            fault = f"is a tensor of {describe_dtype(tensor.dtype)}, expected a dense one of plain numbers"
        except (TypeError, ValueError):  # of arrays: other types, and byte orders
            fault = f"is an array of {getattr(value, 'dtype', None)}, expected plain numbers"
    raise InputError(
        f"Weights file {filename}: the entry {repr(name)[:200]} {fault}. Take it out, or set MODEL.WEIGHTS to another "
        "file."
    )


def _split_state(content: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if not isinstance(content, dict):
        return None, {}
    for key in _STATE_KEYS:
        if isinstance(content.get(key), dict):
            return content[key], {name: value for name, value in content.items() if name != key}
    return content, {}


def _read_shards(index_file: str) -> dict[str, Any]:
    """The parameters of all files that an index names, which lie beside it."""
    if os.path.getsize(index_file) > _MAX_INDEX_BYTES:
        raise ValueError(f"the index has more than {_MAX_INDEX_BYTES} bytes")
    with open(index_file, encoding="utf-8") as file:
        index = json.load(file)
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise ValueError("it has no weight_map, which says the file of each parameter")
    state: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name in sorted(set(file_of.values())):
        if os.path.basename(name) != name or name.endswith(_INDEX_END):
            raise ValueError(f"it names the file {name[:200]!r}; expected one beside it")
        content = read_weights(os.path.join(os.path.dirname(index_file), name))
        state.update(content.pop("model"))
        rest.update(content)
    missing = sorted(file_of.keys() - state.keys())
    if missing:
        raise ValueError(f"{len(missing)} parameters are in none of its files, first {missing[0][:200]}")
    return {**rest, "model": state}


def _read_safely(filename: str) -> Any:
    if filename.endswith(_INDEX_END):
        return _read_shards(filename)
    with open(filename, "rb") as file:
        head = file.read(16)
    if head[8:9] == b"{":
        return _read_safetensors(filename, int.from_bytes(head[:8], "little"))
    if head[:1] != b"\x80" and head[:2] != b"PK" and tarfile.is_tarfile(filename):
        raise ValueError("it is a tar archive, as PyTorch wrote before version 0.1.10")
    content, is_of_torch = read_torch_or_pickle(filename)
    return content if is_of_torch else _complete_pickle(content)


def _complete_pickle(content: Any) -> Any:
    if not isinstance(content, dict) or "model" in content:
        return content
    blobs = content.get("blobs", content)  # Caffe2's and Detectron's own files
    if not isinstance(blobs, dict):
        return content
    state = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}


def _read_safetensors(filename: str, header_length: int) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError("it needs the package safetensors: pip install safetensors") from error
    if header_length > _MAX_SAFETENSORS_HEADER:
        raise ValueError(f"its header has {header_length} bytes, expected at most {_MAX_SAFETENSORS_HEADER}")
    try:
        with safe_open(filename, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            classes = (file.metadata() or {}).get(CLASSES_METADATA)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return state if classes is None else {"model": state, "classes": json.loads(classes)}


def _is_trusted(filename: str) -> bool:
    trusted = os.environ.get(TRUSTED_FILES_VARIABLE, "").split(os.pathsep)
    return os.path.realpath(filename) in {os.path.realpath(path) for path in trusted if path}


def _read_trusted(filename: str) -> Any:
    """Read a file that its user vouches for, and run what it asks for."""
    with open(filename, "rb") as file:
        if file.read(1) == b"\x80":  # a pickle, which in PyTorch's older files is but a number
            file.seek(0)
            content = pickle.Unpickler(file, encoding="latin1").load()
            if type(content) is not int or content != MAGIC:
                return _complete_pickle(content)
    return torch.load(filename, map_location="cpu", weights_only=False)


def _unreadable(filename: str, error: Exception) -> InputError:
    reason = "it is damaged" if isinstance(error, LookupError) else str(error).strip().split("\n")[0][:500].rstrip(".")
    advice = (
        "It may be truncated or of another kind (expected .pth, .bin, .pkl or .safetensors); fetch it again or set "
        "MODEL.WEIGHTS to another file."
    )
    if isinstance(error, ForeignNameError):
        reason = (
            f"it holds {error.name[:200]}, but only arrays and plain containers are read, so that weights run no code"
        )
        advice = (
            f"If you trust whoever made the file, set the environment variable {TRUSTED_FILES_VARIABLE} to {filename}, "
            "else set MODEL.WEIGHTS to another file."
        )
    elif isinstance(error, EntryError):
        reason = f"{error}, but only tensors and arrays of plain numbers and plain containers with text as keys are"
        advice = "Take it out, or set MODEL.WEIGHTS to another file."
    return InputError(f"Weights file {filename} cannot be read: {reason or type(error).__name__}. {advice}")
