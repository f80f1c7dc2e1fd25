"""Real runs of `train_net.py`, small enough that a fault can be injected many times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = "configs/shapes/maskformer_panoptic.yaml"
TINY = [
    *("SEED", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.DEVICE", "cpu"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "12", "SOLVER.WARMUP_ITERS", "3"),
    *("SOLVER.CHECKPOINT_PERIOD", "4", "DATASETS.TEST", "()", "LOG.TCAPPDLL_LINES", "True"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.NHEADS", "4"),
]
# The same as Mask2Former: masked attention over three levels, losses at sampled points.
MASK2FORMER = (
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder"),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", "['res3','res4']"),
    *("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "MultiScaleMaskedTransformerDecoder"),
    *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "4", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "100"),
)


@dataclass(frozen=True)
class TinyTraining:
    """Starts trainings of twelve steps.

    Attributes:
        datasets: the folder that DETECTRON2_DATASETS names.
        started: all processes so far.
    """

    datasets: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, output: Path, *words: str, torchrun: tuple[str, ...] = (), **variables: str
    ) -> subprocess.Popen[str]:
        """Start `train_net.py` in a session of its own; flags (--resume) and KEY VALUE pairs may follow.

        Args:
            output: OUTPUT_DIR.
            words: of the command line.
            torchrun: options of torchrun, which starts it then.
            variables: of the environment.
        """
        flags = [word for word in words if word.startswith("--")]
        options = [word for word in words if not word.startswith("--")]
        launcher = ["-m", "torch.distributed.run", "--standalone", *torchrun] if torchrun else []
        command = [sys.executable, "-W", "ignore", *launcher, "train_net.py", *flags, "--config-file", CONFIG, *TINY]
        environment = {**os.environ, "DETECTRON2_DATASETS": str(self.datasets), "OMP_NUM_THREADS": "1", **variables}
        process = subprocess.Popen(
            [*command, "OUTPUT_DIR", str(output), *options],
            cwd=REPOSITORY, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill what a test that failed has left: it would train, and write checkpoints, until the disk is full."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def run(self, output: Path, *words: str, timeout: float = 300, **variables: str) -> str:
        """Run to the end, which has to be a good one; returns what it printed."""
        process = self.start(output, *words, **variables)
        printed, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, printed[-3000:]
        return printed


def metrics_of(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.json."""
    return [json.loads(line) for line in (output / "metrics.json").read_text(encoding="utf-8").splitlines()]
