"""Real processes over gloo on the CPU; what each computes is compared with the definition in one process."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
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
from maskformer.runs.processes import _meeting_point, run_in_processes
from maskformer.structures import InputError

sys.path.insert(0, str(Path(__file__).parent))  # the processes started here import this module by its name
from test_step import BATCH, MASKS, gradients, stepped, tiny_model

LR = 0.1
MAX_NORM = 1.0  # of the gradient; the network is untrained, and has no statistics
STEPS = 3
REPOSITORY = Path(__file__).resolve().parents[2]


def arguments(output: Path | None = None, **changes: Any) -> argparse.Namespace:
    values = {"num_gpus": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "output": output}
    return argparse.Namespace(**{**values, **changes})


def train_own_half(args: argparse.Namespace) -> None:
    """In each process: a few steps on its own two images; the weights are written."""
    torch.set_num_threads(1)
    rank = comm.get_rank()
    model = tiny_model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    clip_full_model(optimizer, max_norm=MAX_NORM)
    half = BATCH[2 * rank : 2 * rank + 2]
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    parts = getattr(args, "parts", 1)
    trainer = StepTrainer(
        parallel, iter(lambda: half, None), optimizer, accelerator=Accelerator("cpu"), accumulation_steps=parts
    )
    stepped(trainer, STEPS)
    torch.save(model.state_dict(), args.output / f"rank{rank}.pth")


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
    run_in_processes(train_own_half, arguments(tmp_path), "cpu")
    ranks = [torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1)]
    start = tiny_model().double().state_dict()
    for name, expected in train_by_definition().items():
        torch.testing.assert_close(ranks[0][name], expected, rtol=1e-7, atol=1e-9)
        assert torch.equal(ranks[0][name], ranks[1][name])
    assert any(not torch.equal(ranks[0][name], start[name]) for name in start)


def train_own_half_in_parts(args: argparse.Namespace) -> None:
    args.parts = 2
    train_own_half(args)


@pytest.mark.slow
def test_parts_in_two_processes_keep_the_processes_equal(tmp_path: Path):
    run_in_processes(train_own_half_in_parts, arguments(tmp_path), "cpu")
    ranks = [torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])


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


@pytest.mark.slow
def test_every_image_is_evaluated_in_exactly_one_process(tmp_path: Path):
    run_in_processes(evaluate_names, arguments(tmp_path), "cpu")
    assert (tmp_path / "names").read_text().split() == [f"{index}.jpg" for index in range(7)]


def test_one_process_starts_no_other():
    seen = []
    run_in_processes(lambda args: seen.append((comm.get_world_size(), os.getpid())), arguments(num_gpus=1), "cpu")
    assert seen == [(1, os.getpid())]


def test_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.multiprocessing, "start_processes", lambda *_, **__: None)  # start none, come what may
    with pytest.raises(InputError, match=r"--num-gpus is 999, but this machine has \d+ CPU cores"):
        run_in_processes(evaluate_names, arguments(num_gpus=999), "cpu")


def test_several_machines_need_an_address():
    with pytest.raises(InputError, match=r"--dist-url is auto, but with --num-machines it must name"):
        _meeting_point(arguments(num_machines=2))
    assert _meeting_point(arguments(num_machines=2, dist_url="tcp://a:1")) == "tcp://a:1"
    assert _meeting_point(arguments()).startswith("tcp://127.0.0.1:")


@pytest.mark.slow
def test_two_machines_meet_at_the_address(tmp_path: Path):
    """Each machine is a process of its own that starts one rank, as on two hosts."""
    code = (
        "import sys; sys.path.insert(0, 'tests/engine'); from pathlib import Path;"
        "from test_processes import arguments, evaluate_names;"
        "from maskformer.runs.processes import run_in_processes;"
        "run_in_processes(evaluate_names, arguments(Path(sys.argv[1]), num_gpus=1, num_machines=2,"
        " machine_rank=int(sys.argv[2]), dist_url=sys.argv[3]), 'cpu')"
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
