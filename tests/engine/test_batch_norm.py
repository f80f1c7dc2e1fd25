"""Batch norm in several real processes over gloo: one model is evaluated and saved, whichever process is asked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import nn

from maskformer.config import load_config
from maskformer.demo.shapes import generate_shapes
from maskformer.engine import Trainer, build_argument_parser
from maskformer.engine.accelerator import Accelerator
from maskformer.engine.hooks.averaging import explain_batch_norm, share_state
from maskformer.runs.launch import run_in_processes

sys.path.extend([str(Path(__file__).parents[1] / name) for name in ("engine", "runs", "..")])  # for processes, too
from test_launch import REPOSITORY, arguments
from test_step import TINY

import train_net

OPTIONS = {
    **TINY,
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.OUT_FEATURES": "['res2']",
    "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res2']",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9,
    "DATASETS.TRAIN": "('shapes_sem_seg_train',)",
    "DATASETS.TEST": "('shapes_sem_seg_val',)",
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 7,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.EMA.ENABLED": True,
    "SOLVER.EMA.DECAY": 0.5,
    "TEST.EVAL_PERIOD": 3,
    "TEST.BEST_METRIC": "sem_seg/mIoU",
    "SEED": 1,
}


class Mixed(nn.Module):
    """Batch norm, a weight in channels-last order, and buffers that are no statistics."""

    def __init__(self, rank: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.norm.running_mean.fill_(0.1 * (rank + 1))
        self.norm.running_var.copy_(torch.tensor([1.0, 4.0]) * (rank + 1))
        self.norm.num_batches_tracked.fill_(10 + rank)
        self.weight = nn.Parameter(torch.full((2, 3, 4, 5), float(rank)).contiguous(memory_format=torch.channels_last))
        self.register_buffer("flag", torch.tensor([rank == 0]))
        self.register_buffer("ramp", torch.arange(6.0).reshape(2, 3).T + rank, persistent=False)


def share_twice(args: argparse.Namespace) -> None:
    model = Mixed(comm.get_rank())
    share_state(model)
    first = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    share_state(model)
    second = dict((*model.named_parameters(), *model.named_buffers()))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.save(first, args.output / f"rank{comm.get_rank()}.pth")


def check_shared_state(folder: Path) -> None:
    """Processes agree on mean statistics, and on all else of rank 0."""
    ranks = [torch.load(folder / f"rank{rank}.pth") for rank in range(2)]
    assert all(torch.equal(ranks[0][name], rank[name]) for rank in ranks for name in rank)
    agreed = ranks[0]
    torch.testing.assert_close(agreed["norm.running_mean"], torch.full((2,), 0.15))
    torch.testing.assert_close(agreed["norm.running_var"], torch.tensor([1.5, 6.0]))
    assert agreed["norm.num_batches_tracked"] == 10
    assert agreed["weight"].abs().max() == 0 and agreed["flag"].all() and agreed["ramp"][0, 0] == 0


def train_resume_and_evaluate(args: argparse.Namespace) -> None:
    """In each process what train_net.py does, five times; the scores of all evaluations are written."""
    torch.set_num_threads(1)
    share_twice(args)
    scores: list[dict[str, float]] = []
    test = Trainer.test

    def note_scores(*words: Any) -> dict[str, Any]:
        results = test(*words)
        scores.append({name: float(score) for name, score in results.get("sem_seg", {}).items()})
        return results

    Trainer.test = staticmethod(note_scores)
    run = args.output / "run"
    train_net.main(command(run))
    train_net.main(command(run, "--resume"))
    for name in ("final", "ema", "best"):
        options = command(args.output / name, "--eval-only", "MODEL.WEIGHTS", run / f"model_{name}.pth")
        train_net.main(options)
    if comm.is_main_process():
        torch.save(scores, args.output / "scores")


def command(output: Path, *words: Any) -> argparse.Namespace:
    options = [word for pair in OPTIONS.items() for word in pair]
    config = ["--config-file", REPOSITORY / "configs/base/common.yaml"]
    everything = [*words[:1], *config, *options, "OUTPUT_DIR", output, *words[1:]]
    return build_argument_parser().parse_args(list(map(str, everything)))


@pytest.mark.slow
def test_a_weights_file_has_one_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    generate_shapes(tmp_path, num_train=8, num_val=3, image_size=(64, 80), seed=0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    run_in_processes(train_resume_and_evaluate, arguments(tmp_path), Accelerator("cpu"))
    check_shared_state(tmp_path)
    *in_training, resumed, resumed_average, final, average, best = torch.load(tmp_path / "scores")
    assert len({scores["mIoU"] for scores in in_training}) == 6, "after 3, 6 and 7 steps, weights and average"
    assert in_training[-2] == resumed == final
    assert in_training[-1] == resumed_average == average
    assert best["mIoU"] == max(scores["mIoU"] for scores in in_training[::2])
    lines = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "naiveSyncBN" in line]
    assert len(lines) == 2, "the training and its resumption"
    assert "MODEL.RESNETS.NORM" in lines[0] and "backbone.stem.conv1.norm" in lines[0]


@pytest.mark.parametrize(
    ("norm", "device", "facts"),
    [
        (nn.BatchNorm2d, "cpu", ["2 layers", "layers.0", "4 processes", "MODEL.RESNETS.NORM to naiveSyncBN"]),
        (nn.BatchNorm2d, "cuda", ["MODEL.RESNETS.NORM to SyncBN"]),
        (FrozenBatchNorm2d, "cpu", []),
        (NaiveSyncBatchNorm, "cpu", []),
        (nn.SyncBatchNorm, "cuda", []),
    ],
)
def test_batch_norm_of_each_process_is_said_once(
    norm: type[nn.Module], device: str, facts: list[str], monkeypatch: pytest.MonkeyPatch, caplog
):
    cfg = load_config("", ["MODEL.RESNETS.NORM", "BN"])
    cfg.MODEL.DEVICE = device
    model = nn.ModuleDict({"layers": nn.ModuleList([norm(2), norm(3)])})
    explain_batch_norm(cfg, model)
    assert not caplog.records, "one process"
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    explain_batch_norm(cfg, model)
    assert len(caplog.records) == bool(facts)
    assert not [fact for fact in facts if fact not in caplog.text]
    caplog.clear()
    explain_batch_norm(cfg, model.eval())
    assert not caplog.records, "statistics that stay"
