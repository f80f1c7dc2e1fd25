"""From the start of a process to where the user's work begins: the import, or the end of the first training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import detectron2
from detectron2.data import DatasetCatalog

from maskformer.data.datasets.shapes import register_shapes
from maskformer.demo.shapes import generate_shapes
from maskformer.structures import InputError

Unit = Callable[[], None]

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = 8
CROP = 64  # small, so that the start is most of what is measured

# What a plain training script of Detectron2 imports.
_DETECTRON2_IMPORTS = """
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import SemSegEvaluator
from detectron2.modeling import build_model
"""

# Ends the process right after the first step, before weights are saved: what the step made is all there then.
STOP_AFTER_STEP = """
import os
from detectron2.engine.hooks import IterationTimer
IterationTimer.after_step = lambda hook: os._exit(0)
"""

_RUN_TRAIN_NET = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

_RUN_DETECTRON2 = """
import json

def main(args):
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    with open(os.path.join(cfg.OUTPUT_DIR, "records.json")) as file:
        records = json.load(file)
    DatasetCatalog.register(cfg.DATASETS.TRAIN[0], lambda: records)
    MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).set(ignore_label=255)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()

args = default_argument_parser().parse_args()
launch(main, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank, args=(args,))
"""

_PROGRAMS = {
    ("maskformer", "import"): "import maskformer",
    ("detectron2", "import"): _DETECTRON2_IMPORTS,
    ("maskformer", "first_step"): STOP_AFTER_STEP + _RUN_TRAIN_NET,
    ("detectron2", "first_step"): _DETECTRON2_IMPORTS + STOP_AFTER_STEP + _RUN_DETECTRON2,
}
# Of the same size: a ResNet-50, two crops, no pretrained weights.
_SIZES = [
    *("MODEL.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "9", "DATASETS.TRAIN", "('shapes_sem_seg_train',)"),
    *("DATASETS.TEST", "()"),
    *("INPUT.MIN_SIZE_TRAIN", f"({CROP},)", "INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute"),
    *("INPUT.CROP.SIZE", f"[{CROP}, {CROP}]", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
]
# Found beside the package: Detectron2's own way to it needs a module that new versions of setuptools lack.
_SEMANTIC_FPN = Path(detectron2.__file__).parent / "model_zoo/configs/Misc/semantic_R_50_FPN_1x.yaml"
_WORDS = {
    "maskformer": [
        *(str(REPOSITORY / "train_net.py"), "--config-file"),
        *(str(REPOSITORY / "configs/ade20k-150/maskformer_R50_bs16_160k.yaml"), *_SIZES),
        *("INPUT.SIZE_DIVISIBILITY", str(CROP)),
    ],
    "detectron2": ["--config-file", str(_SEMANTIC_FPN), *_SIZES],
}


def start(*, command: str, to: str, device: str = "cpu") -> Unit:
    """A unit starts one process and waits for its end.

    Args:
        command: "maskformer" or "detectron2".
        to: "import", of all that a training script needs; or "first_step", the end of the first training step.
        device: MODEL.DEVICE of the step.

    Raises:
        InputError: a process does not end well; the message has the end of what it wrote.
    """
    words = [sys.executable, "-c", _PROGRAMS[command, to]]
    if to == "import":
        return lambda: run_process(words)
    folder = tempfile.TemporaryDirectory(prefix="maskformer_benchmark_")
    generate_shapes(folder.name, num_train=IMAGES, num_val=1, image_size=(128, 160))
    register_shapes(folder.name)
    Path(folder.name, "records.json").write_text(json.dumps(DatasetCatalog.get("shapes_sem_seg_train")))
    words += [*_WORDS[command], "MODEL.DEVICE", device, "OUTPUT_DIR", folder.name]
    environment = {**os.environ, "DETECTRON2_DATASETS": folder.name}

    def run() -> None:
        assert Path(folder.name).is_dir()  # the unit owns the folder
        run_process(words, environment)

    return run


def run_process(words: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a process to its end, without its output.

    Args:
        words: the program and its arguments.
        environment: its variables; None: those of this process.

    Raises:
        InputError: it does not end well; the message has the end of what it wrote.
    """
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise InputError(f"{words[0]} ended with code {result.returncode}: {result.stderr[-1000:]}")
