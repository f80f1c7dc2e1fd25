from __future__ import annotations

import mmap
import pickle
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from maskformer.engine import accelerator
from maskformer.engine.accelerator import Accelerator, Memory, resolve_device
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


@pytest.mark.parametrize("name", ["auto", "sdaa"])
def test_vendor_package_that_cannot_be_imported_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "torch_sdaa.py").write_text("raise OSError('libsdaart.so: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"torch_sdaa .*libsdaart\.so.*MODEL\.DEVICE to cpu"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_unknown_name_lists_the_valid_ones(name: str):
    with pytest.raises(
        InputError, match=f"MODEL.DEVICE is '{name}', expected one of auto, cpu, sdaa, npu, cuda, xpu, mps"
    ):
        resolve_device(name)


def test_type_that_an_unknown_vendor_registered_is_resolved(monkeypatch: pytest.MonkeyPatch):
    # "vulkan" stands in for a device that this package has no entry for; PyTorch knows the word, but has no module.
    monkeypatch.setattr(torch, "vulkan", SimpleNamespace(device_count=lambda: 2), raising=False)
    assert resolve_device("vulkan:1") == "vulkan:1"
    monkeypatch.delattr(torch, "vulkan")
    with pytest.raises(InputError, match=r"MODEL.DEVICE is 'vulkan', expected one of"):
        resolve_device("vulkan")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for the functions of torch.cuda, for there is no CUDA device here; an Accelerator for it."""

    def build(device: str = "cuda", **functions) -> Accelerator:
        monkeypatch.setattr(torch, "cuda", SimpleNamespace(**functions))
        return Accelerator(device)

    return build


def test_rank_chooses_the_device_unless_the_name_does(cuda):
    selected = []
    cuda(set_device=selected.append).select(local_rank=3)
    cuda("cuda:1", set_device=selected.append).select(local_rank=0)
    assert selected == [3, 1]


def test_another_process_gets_the_same_device():
    sent = pickle.loads(pickle.dumps(Accelerator("cpu")))
    assert (sent.device, sent.num_processes()) == (torch.device("cpu"), Accelerator("cpu").num_processes())


def test_memory_is_the_devices(cuda):
    memory = cuda(memory_allocated=lambda: 5, max_memory_allocated=lambda: 9).memory()
    assert memory == Memory(in_use=5, peak=9)


def test_device_that_keeps_no_peak_has_the_most_that_was_seen(cuda):
    sizes = iter([4, 7, 2])
    device = cuda(current_allocated_memory=lambda: next(sizes))
    assert [device.memory().peak for _ in range(3)] == [4, 7, 7]
    device.reset_peak_memory()
    device._module.current_allocated_memory = lambda: 1
    assert device.memory() == Memory(in_use=1, peak=1)


def test_memory_of_the_cpu_grows_with_what_is_held():
    cpu = Accelerator("cpu")
    before = cpu.memory()
    held = mmap.mmap(-1, 64 * 2**20)  # not a tensor: an allocator may have kept memory that earlier tests freed
    held.write(b"1" * len(held))
    after = cpu.memory()
    assert after.in_use - before.in_use >= 0.9 * len(held)
    assert after.peak >= after.in_use * 0.9


@pytest.mark.parametrize(
    ("functions", "expected"),
    [
        ({"is_bf16_supported": lambda: True}, torch.bfloat16),
        ({"is_bf16_supported": lambda: False}, torch.float16),
        ({"get_amp_supported_dtype": lambda: [torch.float16]}, torch.float16),
        ({"get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16]}, torch.bfloat16),
        ({"get_amp_supported_dtype": lambda: [torch.float16], "is_bf16_supported": lambda: True}, torch.float16),
        ({}, torch.float16),
    ],
)
def test_half_precision_is_what_the_device_computes_in(cuda, functions, expected: torch.dtype):
    assert cuda(**functions).half_precision() == expected


def test_half_precision_can_be_chosen(cuda):
    assert cuda(is_bf16_supported=lambda: True).half_precision("float16") == torch.float16
    with pytest.raises(InputError, match=r"PRECISION is 'bfloat16', which cuda does not compute in; set it to float16"):
        cuda(is_bf16_supported=lambda: False).half_precision("bfloat16")


def test_type_that_autocast_would_leave_out_with_a_warning_is_refused(cuda):
    device = cuda(get_amp_supported_dtype=lambda: [torch.bfloat16])
    with pytest.raises(InputError, match=r"PRECISION is 'float16'.*cuda.*set it to bfloat16 or auto"):
        device.half_precision("float16")
    with pytest.raises(InputError, match=r"set SOLVER\.AMP\.ENABLED to False"):
        cuda(get_amp_supported_dtype=list).half_precision()


def test_loss_is_scaled_for_float16_alone():
    cpu = Accelerator("cpu")
    assert cpu.gradient_scaler(torch.float16).is_enabled()
    assert not cpu.gradient_scaler(torch.bfloat16).is_enabled()
    assert not cpu.gradient_scaler(None).is_enabled()


def test_autocast_is_on_in_its_block_alone():
    cpu = Accelerator("cpu")
    with cpu.autocast(torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with cpu.autocast(None):
            pass
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_vendors_spelling_of_mixed_precision_is_used_where_pytorchs_fails(cuda, monkeypatch: pytest.MonkeyPatch):
    def unknown(*_, **__):
        raise RuntimeError("User specified an unsupported autocast device_type")

    amp = SimpleNamespace(autocast=lambda dtype: ("autocast", dtype), GradScaler=lambda enabled: ("scaler", enabled))
    device = cuda(amp=amp)
    monkeypatch.setattr(torch, "autocast", unknown)
    monkeypatch.setattr(torch.amp, "GradScaler", unknown)
    assert device.autocast(torch.float16) == ("autocast", torch.float16)
    assert device.gradient_scaler(torch.float16) == ("scaler", True)


def test_objects_go_through_gloo_whatever_the_device(cuda):
    assert Accelerator("cpu").process_group_backend() == "gloo"
    assert cuda().process_group_backend() == "cpu:gloo,cuda:nccl"


def test_device_without_process_group_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "vulkan", SimpleNamespace(), raising=False)
    with pytest.raises(InputError, match=r"Processes on vulkan cannot exchange gradients.*use one process"):
        Accelerator("vulkan").process_group_backend()


def test_report_names_device_versions_and_variables(cuda, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("SDAA_VISIBLE_DEVICES", "1")
    report = cuda(get_device_name=lambda: "Card", device_count=lambda: 2).describe()
    assert report["device"] == "cuda (Card)"
    assert report["devices here"] == "2"
    assert report["PyTorch"] == torch.__version__
    assert report["CUDA_VISIBLE_DEVICES"] == "3"
    assert "SDAA_VISIBLE_DEVICES" not in report


@pytest.mark.cuda
def test_cuda_device_measures_its_memory():
    device = Accelerator(resolve_device("cuda"))
    device.select()
    device.reset_peak_memory()
    before = device.memory().in_use
    held = torch.ones(2**20, dtype=torch.uint8, device="cuda")
    device.synchronize()
    assert device.memory().peak - before >= held.numel()


def test_random_state_of_the_device_is_read_and_set_by_its_own_module(cuda):
    states = []
    device = cuda(get_rng_state=lambda: torch.ones(1), set_rng_state=states.append)
    device.set_random_states(device.random_states())
    assert states == [torch.ones(1)]
    assert accelerator.Accelerator("cpu").random_states()["device"] is None
