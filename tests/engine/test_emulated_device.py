"""Everything on an accelerator that the package has never met: the emulated SDAA of tests/sdaa_emulation.

Each test is a process of its own, because a device stays registered with PyTorch for the life of a process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.demo.shapes import generate_shapes
from maskformer.sdaa.tcappdll import parse_line

REPOSITORY = Path(__file__).resolve().parents[2]
EMULATION = REPOSITORY / "tests" / "sdaa_emulation"
CONFIG = "configs/shapes/maskformer_panoptic.yaml"
CONFIG2 = "configs/shapes/mask2former_panoptic.yaml"
# Besides what the emulation always refuses, as the real card does: metrics belong on the CPU.
FORBIDDEN = "aten::bincount,aten::unique_dim,aten::_unique2"
SMALL = [
    *("SEED", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "20", "SOLVER.WARMUP_ITERS", "5", "LOG.TCAPPDLL_LINES", "True"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.NHEADS", "4"),
    *("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.1", "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "0.2"),
]
# AdamW turns rounding errors of near-zero gradients into whole steps: with the recipe's rate, two CPU runs that differ
# in their last bit differ by 1e-4 after 20 iterations.
GENTLE = ["SOLVER.BASE_LR", "0.00001", "DATASETS.TEST", "()"]

# The same on CUDA where a machine has it.
DEVICES = pytest.mark.parametrize("device", ["sdaa", pytest.param("cuda", marks=pytest.mark.cuda)])

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    if shutil.which("c++") is None:
        pytest.skip("the emulated device needs a C++ compiler")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=6, num_val=4, image_size=(64, 80), seed=0)
    return root


@pytest.fixture(scope="module")
def run(datasets: Path):
    """Run a Python command line, with the emulated device's package in reach."""

    def run_command(*words: str | Path, **variables: str) -> str:
        environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": f"{EMULATION}{os.pathsep}{REPOSITORY}"} | variables
        command = [sys.executable, "-W", "ignore", *map(str, words)]
        process = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=500
        )
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
        return process.stdout

    return run_command


@pytest.fixture(scope="module")
def train(run):
    """Train on a device; returns the losses of all iterations."""

    def run_training(output: Path, device: str, *words: str, config: str = CONFIG, **variables: str) -> list[float]:
        options = ["MODEL.DEVICE", device, "OUTPUT_DIR", str(output)]
        flags = [word for word in words if word.startswith("--")]
        values = words[len(flags) :]
        run("train_net.py", *flags, "--config-file", config, *SMALL, *options, *values, **variables)
        return losses_of(output)

    return run_training


def losses_of(output: Path) -> list[float]:
    return [parse_line(line).loss for line in (output / "tcappdll.log").read_text().splitlines()]


def scores_of(output: Path) -> dict[str, float]:
    """The last line of metrics.json that holds scores."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return next(line for line in reversed(list(lines)) if "panoptic_seg/PQ" in line)


@pytest.fixture(scope="module")
def losses_on_cpu(train, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of twenty steps."""
    return train(tmp_path_factory.mktemp("cpu"), "cpu", *GENTLE)


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt six pictures on the CPU, and its scores on them."""
    output = tmp_path_factory.mktemp("trained")
    train(output, "cpu", "SOLVER.MAX_ITER", "100", "DATASETS.TEST", "('shapes_panoptic_train',)")
    return output


@pytest.mark.parametrize(("device", "tolerance"), [("sdaa", 3e-5), pytest.param("cuda", 1e-3, marks=pytest.mark.cuda)])
def test_training_has_the_losses_of_the_cpu(train, losses_on_cpu, tmp_path: Path, device: str, tolerance: float):
    losses = train(tmp_path / device, device, *GENTLE, SDAA_EMULATED_FORBID=FORBIDDEN)
    assert len(losses) == 20
    np.testing.assert_allclose(losses, losses_on_cpu, rtol=tolerance)


def test_mask2former_has_the_losses_of_the_cpu(train, tmp_path: Path):
    """With deformable attention by ``grid_sample`` there, by compiled loops here, and as many points everywhere."""
    words = [*GENTLE, "SOLVER.MAX_ITER", "6", "MODEL.MASK_FORMER.DEC_LAYERS", "4"]
    on_cpu, on_device = (
        train(tmp_path / device, device, *words, config=CONFIG2, **variables)
        for device, variables in (("cpu", {}), ("sdaa", {"SDAA_EMULATED_FORBID": FORBIDDEN}))
    )
    np.testing.assert_allclose(on_device, on_cpu, rtol=0.05)  # their points are drawn by the device's own generator


def test_two_processes_have_the_losses_and_scores_of_two_on_the_cpu_that_torchrun_starts(run, train, tmp_path: Path):
    test = [*GENTLE, "DATASETS.TEST", "('shapes_panoptic_val',)", "SOLVER.MAX_ITER", "6"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    output = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "cpu")]
    run(*torchrun, "train_net.py", "--config-file", CONFIG, *SMALL, *test, *output)
    assert (tmp_path / "cpu" / "log.txt.rank1").exists()
    counts = tmp_path / "counts.json"
    losses = train(tmp_path / "sdaa", "sdaa", "--num-gpus=2", *test, SDAA_EMULATED_COUNTS=str(counts))
    np.testing.assert_allclose(losses, losses_of(tmp_path / "cpu"), rtol=1e-5)
    assert "device: sdaa (emulated SDAA)" in (tmp_path / "sdaa" / "log.txt").read_text()
    assert scores_of(tmp_path / "sdaa") == pytest.approx(scores_of(tmp_path / "cpu"), nan_ok=True)
    ranks = [json.loads(line)["operators"] for line in counts.read_text().splitlines()]
    exchanging = [operators for operators in ranks if operators.get("tccl::allreduce", 0) >= 6]
    assert len(exchanging) == 2, "gradients did not go through the device's own process group"


@DEVICES
def test_evaluation_has_the_scores_of_the_cpu(run, trained: Path, tmp_path: Path, device: str):
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "DATASETS.TEST", "('shapes_panoptic_train',)"]
    options = [*SMALL, *weights, "MODEL.DEVICE", device, "OUTPUT_DIR", tmp_path]
    run("train_net.py", "--eval-only", "--config-file", CONFIG, *options, SDAA_EMULATED_FORBID=FORBIDDEN)
    expected = scores_of(trained)
    assert expected["panoptic_seg/PQ"] > 20, "a model that has learnt nothing shows nothing"
    printed = {
        metrics.split(",")[0]: float(values.split(",")[0])
        for metrics, values in re.findall(
            r"copypaste: ([A-Za-z]\w*,\S+)\n.*copypaste: (\S+)", (tmp_path / "log.txt").read_text()
        )
    }
    assert printed == pytest.approx(
        {
            "mIoU": expected["sem_seg/mIoU"],
            "PQ": expected["panoptic_seg/PQ"],
            "AP": expected["segm/AP"],
        },
        abs=1e-3 if device == "sdaa" else 0.5,
    )


def test_prediction_is_that_of_the_cpu(run, datasets: Path, trained: Path, tmp_path: Path):
    picture = datasets / "shapes" / "train" / "000000.jpg"
    ids = {}
    for device in ("cpu", "sdaa"):
        drawn = tmp_path / f"{device}.png"
        arguments = [
            "--weights",
            trained / "model_final.pth",
            "--input",
            picture,
            "--output",
            drawn,
            "--device",
            device,
        ]
        run("-m", "maskformer.tools.predict", "--config-file", CONFIG, *arguments, *SMALL)
        ids[device] = np.asarray(Image.open(tmp_path / f"{device}_ids.png"))
    assert len(np.unique(ids["cpu"])) > 2
    np.testing.assert_array_equal(ids["sdaa"], ids["cpu"])


def test_run_is_saved_and_resumed_and_its_weights_load_without_the_device(train, run, tmp_path: Path):
    output = tmp_path / "run"
    short = [*GENTLE, "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
    whole = train(output, "sdaa", *short)
    (output / "last_checkpoint").write_text("model_0000001.pth")
    assert train(output, "sdaa", "--resume", *short) == whole, "two iterations were left"
    assert "Starting training from iteration 2" in (output / "log.txt").read_text()
    weights = ["MODEL.WEIGHTS", output / "model_final.pth", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path / "cpu"]
    run("train_net.py", "--eval-only", "--config-file", CONFIG, *SMALL, *weights, PYTHONPATH="")


@DEVICES
def test_mixed_precision_is_float16_with_loss_scaling(train, losses_on_cpu, tmp_path: Path, device: str):
    half = [*GENTLE, "SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", "3"]
    if device == "cuda":
        half += ["SOLVER.AMP.PRECISION", "float16"]  # its own choice may be bfloat16
    losses = train(tmp_path / "float16", device, *half)
    log = (tmp_path / "float16" / "log.txt").read_text()
    assert f"Mixed precision: torch.float16 on {device}" in log
    skipped = len(re.findall(r"Iteration \d: float16 gradients overflowed", log))
    last = json.loads((tmp_path / "float16" / "metrics.json").read_text().splitlines()[-1])
    assert last["skipped_steps"] == skipped
    assert last["grad_scaler"] == 2.0 ** (16 - skipped)
    assert losses[0] == pytest.approx(losses_on_cpu[0], rel=1e-2)
    assert losses[0] != pytest.approx(losses_on_cpu[0], rel=1e-6)


def test_auto_finds_the_device_also_where_cuda_answers_for_it(run, tmp_path: Path):
    migrated = "import runpy, torch_sdaa.utils.cuda_migrate; runpy.run_path('train_net.py', run_name='__main__')"
    options = ["MODEL.DEVICE", "auto", "OUTPUT_DIR", tmp_path, *GENTLE, "SOLVER.MAX_ITER", "2"]
    test = ["DATASETS.TEST", "('shapes_panoptic_val',)"]  # Detectron2's evaluation asks torch.cuda for the time
    run("-c", migrated, "--config-file", CONFIG, *SMALL, *options, *test)
    log = (tmp_path / "log.txt").read_text()
    assert "device: sdaa (emulated SDAA)" in log
    assert "torch_sdaa: 0.0.0+emulated" in log


def test_what_python_loads_runs_on_the_device(run, datasets: Path, tmp_path: Path):
    """Detectron2's own classes and ours, of a configuration that names no device."""
    script = f"""
import numpy as np
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from maskformer import Trainer
from maskformer.config import load_config
from maskformer.predictor import Predictor

cfg = load_config({CONFIG!r}, {[*SMALL, *GENTLE, "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path)]!r})
trainer = Trainer(cfg)
trainer.train()
cfg.MODEL.WEIGHTS = {str(tmp_path / "model_final.pth")!r}
picture = np.zeros((64, 80, 3), np.uint8)
for model in (trainer.model, build_model(cfg), DefaultPredictor(cfg).model, Predictor.from_config(cfg).model):
    print(model.device.type)
print(DefaultPredictor(cfg)(picture)["panoptic_seg"][0].device.type)
"""
    assert [line for line in run("-c", script).splitlines() if line in ("cpu", "sdaa")] == ["sdaa"] * 5


# Mask2Former projects pixel embeddings three times more, for attention masks, without a gradient.
@pytest.mark.parametrize(("config", "again"), [(CONFIG, 0), (CONFIG2, 3)], ids=["MaskFormer", "Mask2Former"])
def test_one_step_computes_on_the_device_alone_and_waits_for_it_twice(run, config, again):
    options = [*SMALL, *GENTLE, "MODEL.DEVICE", "sdaa"]
    report = json.loads(run(EMULATION / "report_step.py", config, *options).splitlines()[-1])
    device, host = report["device"], report["host"]
    assert report["parameters"][0] == report["parameters"][1]
    assert device["aten::convolution_overrideable"] == report["convolutions"] + again
    assert device["aten::convolution_backward_overrideable"] == report["convolutions"]
    assert host == {}
    # The costs and the losses go to the host, nothing else; no number is asked for.
    assert device["copy::device_to_host"] == 2
    assert "aten::_local_scalar_dense" not in device


def test_models_have_the_losses_gradients_and_results_of_the_cpu(run):
    report = json.loads(run(EMULATION / "compare_models.py").splitlines()[-1])
    assert len(report) == 9 * 2 * 2, "models, batches of 1 and 2, training and evaluation"
    assert not {name: found for name, found in report.items() if isinstance(found, str) or not found < 1e-5}


def test_emulation_refuses_what_the_card_does_and_what_is_forbidden(run):
    refused = """
import torch, torch_sdaa
table = torch.zeros(2, 4, 3, 5, device="sdaa")
last = table.contiguous(memory_format=torch.channels_last)
for attempt in (
    lambda: table.index_select(0, torch.tensor([1])),
    lambda: table + torch.ones(2, 4, 3, 5),
    lambda: table.histc(),
    lambda: table.bincount(),
    lambda: last.view(2, 4, 3, 5),
    lambda: torch.nn.functional.group_norm(last, 2),
    lambda: torch.compile(torch.relu, dynamic=True)(table),
):
    try:
        attempt()
    except (RuntimeError, NotImplementedError) as error:
        print(error)
"""
    lines = run("-c", refused, SDAA_EMULATED_FORBID="aten::bincount").splitlines()
    devices, view = "sdaa:0 and cpu", "view of a non-contiguous"
    facts = [devices, devices, "aten::histc", "aten::bincount", view, view, "dynamic shapes"]
    assert len(lines) == len(facts)
    assert not [(fact, line) for fact, line in zip(facts, lines) if fact not in line]


def test_absent_device_is_one_sentence(datasets: Path):
    environment = {**os.environ, "PYTHONPATH": str(EMULATION), "SDAA_EMULATED_DEVICES": "0"}
    command = [sys.executable, "-W", "ignore", "train_net.py", "--config-file", CONFIG, "MODEL.DEVICE", "sdaa"]
    process = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == (
        "error: MODEL.DEVICE is 'sdaa', but no such device is available; set MODEL.DEVICE to auto or cpu."
    )
