from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maskformer.checkpoint import find_weights_file, read_weights
from maskformer.checkpoint.reading import TRUSTED_FILES_VARIABLE
from maskformer.structures import InputError


class Bomb:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


class TensorBomb:
    """The same, within what a pickled tensor's bytes hold."""

    def __init__(self, folder: Path):
        torch.save(Bomb(), folder / "inner.pth", _use_new_zipfile_serialization=False)
        self.content = (folder / "inner.pth").read_bytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.content,)


def write_bomb(path: Path, bomb: Any = None) -> Path:
    content = {"model": {"weight": torch.zeros(1)}, "extra": bomb or Bomb()}
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".old")
    return path


@pytest.mark.parametrize("name", ["bomb.pkl", "bomb.pth", "bomb.bin", "bomb.old"])
def test_code_in_a_file_is_refused_by_name_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    path = write_bomb(tmp_path / name)
    message = (
        rf"Weights file .*{name} cannot be read: it holds (posix|os|nt)\.system, .*{TRUSTED_FILES_VARIABLE} to {path}"
    )
    with pytest.raises(InputError, match=message) as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_code_under_another_ending_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for ending in ("safetensors", "pth"):
        path = tmp_path / f"bomb.{ending}"
        path.write_bytes(pickle.dumps({"model": Bomb()}))
        with pytest.raises(InputError, match="cannot be read"):
            read_weights(str(path))
    assert not (tmp_path / "exploded").exists()


def test_code_in_the_bytes_of_a_pickled_tensor_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = write_bomb(tmp_path / "bomb.pkl", TensorBomb(tmp_path))
    with pytest.raises(InputError, match=r"(posix|os)\.system"):
        read_weights(str(path))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["bomb.pkl", "bomb.pth"])
def test_a_file_that_the_user_names_is_trusted_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    named, other = write_bomb(tmp_path / name), write_bomb(tmp_path / f"other_{name}")
    monkeypatch.setenv(TRUSTED_FILES_VARIABLE, os.pathsep.join(["elsewhere.pth", name]))
    with pytest.raises(InputError):
        read_weights(str(other))
    assert not (tmp_path / "exploded").exists()
    assert read_weights(str(named))["model"]["weight"].tolist() == [0.0]
    assert (tmp_path / "exploded").exists()


def test_tensors_in_a_pickle_are_read(tmp_path: Path):
    """The original repository's converter for Swin writes such files."""
    weight = torch.arange(6, dtype=torch.float16).reshape(2, 3).t()
    state = OrderedDict(weight=weight, bias=nn.Parameter(torch.ones(2)), count=torch.tensor(3))
    (tmp_path / "swin.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "x", "matching_heuristics": True}))
    content = read_weights(str(tmp_path / "swin.pkl"))
    assert torch.equal(content["model"]["weight"], weight) and content["model"]["weight"].dtype == torch.float16
    assert content["model"]["bias"].tolist() == [1.0, 1.0] and content["model"]["count"] == 3
    assert content["matching_heuristics"]


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_parameters_are_found_under_the_usual_keys(tmp_path: Path, key: str):
    torch.save({key: {"weight": torch.ones(1)}, "epoch": 3}, tmp_path / "model.pth")
    assert read_weights(str(tmp_path / "model.pth")) == {"model": {"weight": torch.ones(1)}, "epoch": 3}


def test_kind_of_file_is_told_by_its_content(tmp_path: Path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"weight": torch.ones(2)}, tmp_path / "misnamed.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "misnamed.pkl")
    torch.save({"weight": torch.ones(2)}, tmp_path / "misnamed.safetensors")
    for name in ("misnamed.pth", "misnamed.pkl", "misnamed.safetensors"):
        assert read_weights(str(tmp_path / name))["model"]["weight"].tolist() == [1.0, 1.0]


def test_folder_of_hugging_face_is_its_weights_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no weights; expected model\.safetensors or pytorch_model\.bin"):
        find_weights_file(str(tmp_path))
    for name in ("pytorch_model.bin", "model.safetensors"):  # the latter is preferred
        (tmp_path / name).touch()
        assert find_weights_file(str(tmp_path)) == str(tmp_path / name)
    assert find_weights_file("model.pth") == "model.pth"


def test_file_in_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "weights_package"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = find_weights_file("package://weights_package/models/a.pth?matching_order=True")
    assert found == f"{package / 'models' / 'a.pth'}?matching_order=True"


@pytest.mark.parametrize(
    "path", ["no_such_package/a.pth", "weights.models/a.pth", "json.decoder/a.pth", "../a.pth", ""]
)
def test_file_in_a_package_that_is_none_is_one_sentence(path: str):
    with pytest.raises(InputError, match=r"package://.*not installed"):
        find_weights_file(f"package://{path}")


@pytest.mark.parametrize("name", ["cut.pkl", "cut.pth", "cut.safetensors", "empty.pth"])
def test_truncated_file_is_one_sentence(tmp_path: Path, name: str):
    state = {"weight": torch.zeros(1000)}
    torch.save(state, tmp_path / "whole.pth")
    whole = {
        "cut.pkl": pickle.dumps({"model": {"weight": np.zeros(1000)}, "__author__": ""}),
        "cut.safetensors": b"\xff" * 64,
        "cut.pth": (tmp_path / "whole.pth").read_bytes(),
    }
    (tmp_path / name).write_bytes(whole.get(name, b"")[: len(whole.get(name, b"")) // 2])
    with pytest.raises(InputError, match=rf"Weights file .*{name} cannot be read") as caught:
        read_weights(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"hello\n", b"(dp0\n", b"\x80\x02a."])
def test_file_that_is_no_pickle_is_said_to_be_damaged(tmp_path: Path, content: bytes):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"other\.pth cannot be read: it (is damaged|ends too early)\."):
        read_weights(str(tmp_path / "other.pth"))


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1, 2]])
def test_file_without_parameters_is_refused(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth holds no parameters"):
        read_weights(str(tmp_path / "other.pth"))
