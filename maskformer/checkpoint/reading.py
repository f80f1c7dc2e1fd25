"""Reading weights files safely: a weights file is data, and nothing in it is ever run.

``.safetensors`` holds tensors alone. What ``torch.save`` wrote is read by ``torch.load(weights_only=True)``. A pickle
(``.pkl``) is read by an unpickler that knows NumPy arrays, plain tensors and plain containers; tensors are admitted
because the original repository's converters write them, and their bytes go through ``weights_only=True`` as well. Which
of the three a file is, its first bytes say.

A file that asks for anything else is refused by name. Whoever trusts its maker sets the environment variable
MASKFORMER_TRUSTED_WEIGHTS to the path of that one file (more than one: separated as in PATH). It is no configuration
key, because a configuration file may come from where the weights do.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskformer.structures import InputError

TRUSTED_FILES_VARIABLE = "MASKFORMER_TRUSTED_WEIGHTS"
_STATE_KEYS = ("model", "state_dict")  # Detectron2 and Swin; OpenMMLab and timm
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # Hugging Face's


def find_weights_file(path: str) -> str:
    """The weights file of a folder that Hugging Face's ``save_pretrained`` wrote; of a file, itself.

    Raises:
        InputError: a folder holds no such file.
    """
    if not os.path.isdir(path):
        return path
    for name in _FOLDER_FILES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise InputError(
        f"Folder {path} holds no weights; expected {' or '.join(_FOLDER_FILES)}: set MODEL.WEIGHTS to a file."
    )


def read_weights(filename: str) -> dict[str, Any]:
    """Read a weights file without running anything in it.

    Args:
        filename: ``.pkl`` (Detectron2's model zoo), ``.safetensors``, or else what ``torch.save`` wrote.

    Returns:
        ``model``, parameters by name, and what else the file holds. ``matching_heuristics`` marks backbone weights
        whose names are only the ends of a model's.

    Raises:
        InputError: the file cannot be read, asks to run something, or holds something else.
    """
    content = _read_trusted(filename) if _is_trusted(filename) else _read_safely(filename)
    state, rest = _split_state(content)
    if not state or not all(isinstance(value, (Tensor, np.ndarray)) for value in state.values()):
        raise InputError(
            f"Weights file {filename} holds no parameters; expected tensors by name, alone or under the key "
            f"{' or '.join(map(repr, _STATE_KEYS))}. Set MODEL.WEIGHTS to another file."
        )
    return {**rest, "model": {name: torch.as_tensor(value) for name, value in state.items()}}


def _split_state(content: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if not isinstance(content, dict):
        return None, {}
    for key in _STATE_KEYS:
        if isinstance(content.get(key), dict):
            return content[key], {name: value for name, value in content.items() if name != key}
    return content, {}


def _read_safely(filename: str) -> Any:
    try:
        with open(filename, "rb") as file:
            head = file.read(16)
        if head[8:9] == b"{" or filename.endswith(".safetensors"):
            return _read_safetensors(filename)
        if _is_plain_pickle(head) or (filename.endswith(".pkl") and not head.startswith(_TORCH_BEGINNINGS)):
            return _read_pickle(filename)
        if not head.startswith(b"PK") and tarfile.is_tarfile(filename):
            # PyTorch before 2.6 unpacks it in spite of weights_only, later ones refuse it (CVE-2025-32434).
            raise ValueError("it is a tar archive, as PyTorch wrote before version 0.1.10")
        return torch.load(filename, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise whatever a truncated or foreign file leads them to
        raise _unreadable(filename, error) from error


# torch.save's own file formats: today's zip, and the pickled number that older ones begin with.
_TORCH_BEGINNINGS = (b"PK", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[:13])


def _is_plain_pickle(head: bytes) -> bool:
    return head.startswith(b"\x80") and not head.startswith(_TORCH_BEGINNINGS)


def _read_pickle(filename: str) -> Any:
    with open(filename, "rb") as file:
        return _complete_pickle(_ArrayUnpickler(file, encoding="latin1").load())


def _complete_pickle(content: Any) -> Any:
    if not isinstance(content, dict) or "model" in content:
        return content
    blobs = content.get("blobs", content)  # Caffe2's and Detectron's own files
    state = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}


def _read_safetensors(filename: str) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"Weights file {filename} needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(filename)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


_ALLOWED = {
    "_codecs.encode",
    "collections.OrderedDict",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")  # NumPy 1 and NumPy 2
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    ),
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}


def _load_storage(content: bytes) -> Any:
    """What stands for ``torch.storage._load_from_bytes``, which would run what the bytes hold."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays, tensors and plain containers, and refuses everything else that a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that a pickle names, if it is one of the few that arrays need."""
        if f"{module}.{name}" == "torch.storage._load_from_bytes":
            return _load_storage
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def _is_trusted(filename: str) -> bool:
    trusted = os.environ.get(TRUSTED_FILES_VARIABLE, "").split(os.pathsep)
    return os.path.realpath(filename) in {os.path.realpath(path) for path in trusted if path}


def _read_trusted(filename: str) -> Any:
    """Read a file that its user vouches for, and run what it asks for."""
    try:
        with open(filename, "rb") as file:
            if _is_plain_pickle(file.read(16)):
                file.seek(0)
                return _complete_pickle(pickle.Unpickler(file, encoding="latin1").load())
        return torch.load(filename, map_location="cpu", weights_only=False)
    except Exception as error:
        raise _unreadable(filename, error) from error


# How PyTorch's refusals and ours name what a file asks for.
_ASKED_FOR = re.compile(r"(?:it holds|GLOBAL) ([\w.]+\w)")


def _unreadable(filename: str, error: Exception) -> InputError:
    asked_for = _ASKED_FOR.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if asked_for is not None:
        return InputError(
            f"Weights file {filename} cannot be read: it holds {asked_for[1]}, but only arrays and plain containers "
            "are read, so that weights run no code. If you trust whoever made the file, set the environment variable "
            f"{TRUSTED_FILES_VARIABLE} to {filename}, else set MODEL.WEIGHTS to another file."
        )
    # PyTorch advises, before and after the reason, to read the file unsafely.
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0].split(". Please use")[0]
    return InputError(
        f"Weights file {filename} cannot be read: {reason.rstrip('.') or type(error).__name__}. It may be truncated or "
        "of another kind (expected .pth, .bin, .pkl or .safetensors); fetch it again or set MODEL.WEIGHTS to another "
        "file."
    )
