"""docs/own_data.md: its YAML block and the commands below it, run as they stand there."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from maskformer.config import load_config
from maskformer.engine import build_argument_parser
from maskformer.tools import predict

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "own_data.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## ")[0]
OWN_CONFIG = re.search(r"```yaml\n(.*?)```", SECTION, flags=re.DOTALL)[1]
OWN_BASE = re.search(r"_BASE_: (\S+)", OWN_CONFIG)[1]
OWN_COMMANDS = [
    line.split() for line in re.findall(r"^    (python .*)$", SECTION.replace("\\\n", " "), flags=re.MULTILINE)
]
# The same model, small; two iterations of two images each.
REDUCED = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 4,
    "INPUT.MIN_SIZE_TEST": 64,
}
SHORT = {
    "MODEL.WEIGHTS": "",
    "SOLVER.MAX_ITER": 2,
    "SOLVER.IMS_PER_BATCH": 2,
    "TEST.EVAL_PERIOD": 0,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.CROP.SIZE": (64, 64),
    "INPUT.SIZE_DIVISIBILITY": 64,
    "DATALOADER.NUM_WORKERS": 0,
}


def words_of(options: dict[str, object]) -> list[str]:
    """KEY VALUE KEY VALUE ..."""
    return [str(word) for pair in options.items() for word in pair]


@pytest.fixture
def garden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> Iterator[Path]:
    """The folder of the example: its configuration as it stands on the page or on another base, pictures of noise."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "garden.yaml").write_text(re.sub(r"_BASE_: \S+", f"_BASE_: {base}", OWN_CONFIG, count=1))
    random = np.random.default_rng(0)
    for split in yaml.safe_load(OWN_CONFIG)["DATASETS"]["OWN"]["garden"].values():
        for folder, shape, top in (("images", (70, 90, 3), 256), ("labels", (70, 90), 4)):
            if isinstance(split, dict):
                (tmp_path / split[folder]).mkdir(parents=True)
                for name in ("a", "b"):
                    pixels = random.integers(0, top, shape, dtype=np.uint8)
                    Image.fromarray(pixels).save(tmp_path / split[folder] / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(n) for n in ("detectron2", "fvcore", "maskformer", "detectron2.engine.train_loop")]
    before = [(logger.level, logger.propagate, logger.handlers[:], logger.filters[:]) for logger in loggers]
    yield tmp_path
    for logger, (level, propagate, handlers, filters) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers, logger.filters = propagate, handlers, filters
    for name in ("garden_train", "garden_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_own_configuration_is_followed_by_its_three_commands():
    assert [words[1] for words in OWN_COMMANDS] == ["train_net.py", "train_net.py", "-m"]


@pytest.mark.parametrize(
    ("number", "recipe", "metric"),
    [
        (1, "coco-instance/maskformer_instance_R50_bs64_554k.yaml", "segm/AP"),
        (2, "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k.yaml", "panoptic_seg/PQ"),
    ],
)
def test_few_pictures_of_other_kinds_have_the_keys_of_their_recipes(
    tmp_path: Path, number: int, recipe: str, metric: str
):
    configs = REPOSITORY / "configs"
    block = re.search(rf"```yaml\n# \({number}\)\n(.*?)```", PAGE, re.DOTALL)[1]
    (tmp_path / "few.yaml").write_text(f"_BASE_: {configs / 'base' / 'few_images.yaml'}\n{block}")
    few, many = load_config(str(tmp_path / "few.yaml")), load_config(str(configs / recipe))
    assert few.INPUT.DATASET_MAPPER_NAME == many.INPUT.DATASET_MAPPER_NAME
    switches = ("SEMANTIC_ON", "PANOPTIC_ON", "INSTANCE_ON")
    assert [few.MODEL.MASK_FORMER.TEST[key] for key in switches] == [
        many.MODEL.MASK_FORMER.TEST[key] for key in switches
    ]
    assert metric == few.TEST.BEST_METRIC


@pytest.mark.slow
@pytest.mark.parametrize(
    "base", [OWN_BASE, "configs/mask2former/ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"]
)
def test_own_pictures_are_trained_on_evaluated_and_drawn_as_the_page_says(garden: Path):
    train, evaluate, draw = OWN_COMMANDS
    spec = importlib.util.spec_from_file_location("train_net", REPOSITORY / "train_net.py")
    train_net = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train_net)
    train_net.main(build_argument_parser().parse_args([*train[2:], *words_of(REDUCED | SHORT)]))
    weights = torch.load(garden / "output/garden/model_final.pth", weights_only=True)["model"]
    assert len(weights["sem_seg_head.predictor.class_embed.weight"]) == 3 + 1  # and "no object"
    log = [json.loads(line) for line in (garden / "output/garden/metrics.json").read_text().splitlines()]
    assert [entry["iteration"] for entry in log if "total_loss" in entry] == [1]  # the second of two
    scores = train_net.main(build_argument_parser().parse_args([*evaluate[2:], *words_of(REDUCED)]))["sem_seg"]
    assert {"IoU-grass", "IoU-path", "IoU-pond"} <= scores.keys()
    assert 0 < scores["mIoU"] < 100
    assert predict.main([*draw[3:], *words_of(REDUCED)]) == 0
    table = json.loads((garden / "output/garden/drawn/a_ids.json").read_text())
    assert {"grass", "path", "pond"} >= set(re.findall(r'"name": "(\w+)"', json.dumps(table))) != set()
