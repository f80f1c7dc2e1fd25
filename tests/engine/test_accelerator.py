from __future__ import annotations

import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch

from maskformer.engine import accelerator
from maskformer.engine.accelerator import resolve_device
from maskformer.structures import InputError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with as many devices of each type as asked for, whatever this one has."""

    def describe(*, with_torch_accelerator: bool = False, **counts: int) -> None:
        for device_type in accelerator.ACCELERATORS:
            module = SimpleNamespace(device_count=partial(counts.get, device_type, 0))
            monkeypatch.setattr(torch, device_type, module, raising=False)
        if with_torch_accelerator:
            first = next(iter(counts), None)
            generic = SimpleNamespace(
                is_available=lambda: first is not None, current_accelerator=lambda: SimpleNamespace(type=first)
            )
            monkeypatch.setattr(torch, "accelerator", generic, raising=False)
        else:
            monkeypatch.delattr(torch, "accelerator", raising=False)

    return describe


def test_cpu_is_always_there(machine):
    machine()
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("with_torch_accelerator", [True, False])
def test_auto_is_the_accelerator_that_is_there(machine, with_torch_accelerator: bool):
    machine(xpu=1, with_torch_accelerator=with_torch_accelerator)
    assert resolve_device("auto") == "xpu"


@pytest.mark.parametrize("with_torch_accelerator", [True, False])
def test_auto_without_accelerator_is_the_cpu(machine, with_torch_accelerator: bool):
    machine(with_torch_accelerator=with_torch_accelerator)
    assert resolve_device("auto") == "cpu"


def test_auto_prefers_the_vendor_device_that_makes_cuda_answer_for_it(machine):
    machine(cuda=4, sdaa=4)
    assert resolve_device("auto") == "sdaa"


def test_index_is_kept(machine):
    machine(cuda=2)
    assert resolve_device("cuda:1") == "cuda:1"


def test_index_beyond_the_devices_is_refused(machine):
    machine(cuda=2)
    with pytest.raises(InputError, match=r"'cuda:2', but this machine has 2 such devices"):
        resolve_device("cuda:2")


def test_absent_device_is_refused(machine):
    machine()
    with pytest.raises(InputError, match=r"MODEL.DEVICE is 'cuda', but no such device is available; set MODEL.DEVICE"):
        resolve_device("cuda")


def test_device_whose_package_is_missing_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accelerator.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"its package torch_sdaa is not installed"):
        resolve_device("sdaa")


def test_vendor_package_is_imported_to_register_its_device(monkeypatch: pytest.MonkeyPatch, tmp_path):
    package = tmp_path / "torch_sdaa.py"
    package.write_text("import torch, types\ntorch.sdaa = types.SimpleNamespace(device_count=lambda: 4)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch, "sdaa", None, raising=False)  # restored afterwards
    monkeypatch.delattr(torch, "sdaa")
    assert resolve_device("sdaa:3") == "sdaa:3"
    assert isinstance(sys.modules.pop("torch_sdaa"), ModuleType)
    del torch.sdaa


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_unknown_name_lists_the_valid_ones(name: str):
    with pytest.raises(
        InputError, match=f"MODEL.DEVICE is '{name}', expected one of auto, cpu, sdaa, npu, cuda, xpu, mps"
    ):
        resolve_device(name)
