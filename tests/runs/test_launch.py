"""Real processes over gloo on the CPU; what each computes is compared with the definition in one process."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskformer.engine.accelerator import Accelerator
from maskformer.engine.optimizer import clip_full_model
from maskformer.engine.step import StepTrainer
from maskformer.runs.launch import _meeting_point, keep_freed_memory, run_in_processes
from maskformer.structures import InputError

sys.path.extend([str(Path(__file__).parents[1] / name) for name in ("engine", "runs")])  # for processes
from test_step import BATCH, MASKS, gradients, stepped, tiny_model

LR = 0.1
MAX_NORM = 1.0  # of the gradient; the network is untrained, and has no statistics
STEPS = 3
REPOSITORY = Path(__file__).resolve().parents[2]


def arguments(output: Path | None = None, **changes: Any) -> argparse.Namespace:
    values = {"num_gpus": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "output": output}
    return argparse.Namespace(**{**values, **changes})


def train_own_half(args: argparse.Namespace) -> None:
    """In each process: a few steps on its own two images, whole and in two parts; the weights are written."""
    torch.set_num_threads(1)
    rank = comm.get_rank()
    half = BATCH[2 * rank : 2 * rank + 2]
    for parts in (1, 2):
        model = tiny_model().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        clip_full_model(optimizer, max_norm=MAX_NORM)
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
        loader = iter(lambda: half, None)
        trainer = StepTrainer(parallel, loader, optimizer, accelerator=Accelerator("cpu"), accumulation_steps=parts)
        stepped(trainer, STEPS)
        torch.save(model.state_dict(), args.output / f"rank{rank}_{parts}.pth")


def train_by_definition() -> dict[str, torch.Tensor]:
    """One process: the mean over halves of each one's loss, mask losses over the mean number of masks."""
    model = tiny_model().double()
    for _ in range(STEPS):
        total = torch.zeros(())
        for half, masks in zip((BATCH[:2], BATCH[2:]), MASKS):
            for name, loss in model(half).items():
                own_share = 1.0 if name.startswith("loss_ce") else masks / (sum(MASKS) / 2)
                total = total + loss * own_share / 2
        model.zero_grad()
        total.backward()
        norm = torch.stack([gradient.norm() for gradient in gradients(model).values()]).norm()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= LR * parameter.grad * min(1.0, MAX_NORM / (norm.item() + 1e-6))  # PyTorch adds it
    return model.state_dict()


@pytest.mark.slow
def test_two_processes_train_as_their_definition_in_one(tmp_path: Path):
    run_in_processes(train_own_half, arguments(tmp_path), Accelerator("cpu"))
    whole, parts = ([torch.load(tmp_path / f"rank{rank}_{n}.pth") for rank in (0, 1)] for n in (1, 2))
    start = tiny_model().double().state_dict()
    for name, expected in train_by_definition().items():
        torch.testing.assert_close(whole[0][name], expected, rtol=1e-7, atol=1e-9)
        assert torch.equal(whole[0][name], whole[1][name]) and torch.equal(parts[0][name], parts[1][name])
    assert any(not torch.equal(whole[0][name], start[name]) for name in start)


class Names(DatasetEvaluator):
    """Gathers the file names that it was shown."""

    def reset(self) -> None:
        self.names: list[str] = []

    def process(self, inputs: list[dict], outputs: list[Any]) -> None:
        self.names += [example["file_name"] for example in inputs]

    def evaluate(self) -> list[str] | None:
        names = comm.gather(self.names)
        return sorted(name for own in names for name in own) if comm.is_main_process() else None


class Nothing(nn.Module):
    def forward(self, batch: list[dict]) -> list[dict]:
        return [{} for _ in batch]


def evaluate_names(args: argparse.Namespace) -> None:
    from detectron2.data import build_detection_test_loader

    records = [{"file_name": f"{index}.jpg"} for index in range(7)]
    loader = build_detection_test_loader(records, mapper=dict, num_workers=0)
    names = inference_on_dataset(Nothing(), loader, Names())
    if comm.is_main_process():
        (args.output / "names").write_text(" ".join(names))


def test_one_process_starts_no_other():
    seen = []
    run_in_processes(
        lambda args: seen.append((comm.get_world_size(), os.getpid())), arguments(num_gpus=1), Accelerator("cpu")
    )
    assert seen == [(1, os.getpid())]


def test_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.multiprocessing, "start_processes", lambda *_, **__: None)  # start none, come what may
    with pytest.raises(InputError, match=r"--num-gpus is 999, .* cpu .* \d+\."):
        run_in_processes(evaluate_names, arguments(num_gpus=999), Accelerator("cpu"))


def test_several_machines_need_an_address():
    with pytest.raises(InputError, match=r"--dist-url is auto, but with --num-machines it must name"):
        _meeting_point(arguments(num_machines=2))
    assert _meeting_point(arguments(num_machines=2, dist_url="tcp://a:1")) == "tcp://a:1"
    assert _meeting_point(arguments()).startswith("tcp://127.0.0.1:")


@pytest.mark.slow
def test_two_machines_meet_at_the_address(tmp_path: Path):
    """Each machine is a process of its own that starts one rank, as on two hosts; each image is evaluated once."""
    code = (
        "import sys; sys.path.insert(0, 'tests/runs'); from pathlib import Path;"
        "from test_launch import arguments, evaluate_names;"
        "from maskformer.engine.accelerator import Accelerator;"
        "from maskformer.runs.launch import run_in_processes;"
        "run_in_processes(evaluate_names, arguments(Path(sys.argv[1]), num_gpus=1, num_machines=2,"
        " machine_rank=int(sys.argv[2]), dist_url=sys.argv[3]), Accelerator('cpu'))"
    )
    url = _meeting_point(arguments())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "tests")}
    machines = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path, str(rank), url],
            cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    assert (tmp_path / "names").read_text().split() == [f"{index}.jpg" for index in range(7)]


def test_two_runs_on_a_machine_meet_at_different_ports():
    args = arguments()
    assert len({_meeting_point(args) for _ in range(20)}) > 1


_FAULTS = """
import resource
import torch
from maskformer.runs.launch import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's allocator is asked")
def test_freed_memory_is_kept():
    """In a process of its own, as it cannot be undone: 64 MB need 16,384 pages at each use, or none again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-W", "ignore", "-c", _FAULTS]
    assert int(subprocess.check_output(command, env=environment, text=True)) < 1000


def test_allocator_of_a_user_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(mallopt=lambda *option: asked.append(option)))
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    keep_freed_memory()
    assert not asked
