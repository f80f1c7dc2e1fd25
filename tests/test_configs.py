"""The recipes are the released ones, key by key, but for deviations that have a reason."""

from __future__ import annotations

import fnmatch
import functools
from pathlib import Path
from typing import Any

import pytest
import released
import torch
import torchvision
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from maskformer.checkpoint import Checkpointer
from maskformer.config import add_maskformer_config, load_config
from maskformer.data.datasets import register_all
from maskformer.data.datasets.classes import resolve_classes
from maskformer.engine.accelerator import resolve_device
from maskformer.tools.analyze import analyze

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in FILES if not name.startswith("base/")]
# The second generation's default; ours is the first's.
MASKED = {"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder"}
SECOND = {name: {**MASKED, **recipe} for name, recipe in released.SECOND.items() if "/Base-" not in name}
RECIPES: dict[str, dict[str, Any]] = {**released.FIRST, **SECOND}
COCO_IMAGES = 118_000  # by which the released files count epochs

TORCHVISION = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_{}.pth"
SWINS = {
    "tiny": "tiny_patch4_window7_224",
    "small": "small_patch4_window7_224",
    "base_384": "base_patch4_window12_384",
    "base_IN21k": "base_patch4_window12_384_22k",
    "large": "large_patch4_window12_384_22k",
}
TEST_SIZES = ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
# File, key, our value, and words of the comment in the file that gives the reason.
DEVIATIONS = [
    ("*_R101_*", "MODEL.WEIGHTS", TORCHVISION, "R-101.pkl, which is hosted nowhere"),
    *(
        (f"*_swin_{name}_*", "MODEL.WEIGHTS", SWIN.format(file), ".pkl, which is hosted nowhere")
        for name, file in SWINS.items()
    ),
    *(
        ("eomt/coco_*_large_1280_dinov3.yaml", key, 1280, "no size of its own")
        for key in ("MODEL.EOMT.IMAGE_SIZE", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "INPUT.IMAGE_SIZE", *TEST_SIZES)
    ),
    ("coco-panoptic/swin/*", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 0, "BasePixelDecoder has no encoder"),
]
# What the network of an architecture is made of.
PARTS = {"MaskFormer": ["backbone", "sem_seg_head"], "EoMT": ["encoder", "q", "class_head", "mask_head", "upscale"]}
PARTS["SemanticSegmentor"] = PARTS["MaskFormer"]
# Ours are a released recipe with these differences.
OURS = {
    "coco-instance/maskformer_instance_R50_bs64_554k.yaml": {
        **RECIPES["coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 80,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": False,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
        "DATASETS.TRAIN": ["coco_2017_train"],
        "DATASETS.TEST": ["coco_2017_val"],
        "INPUT.DATASET_MAPPER_NAME": "mask_former_instance",
        "INPUT.CROP.ENABLED": False,
    },
    "cityscapes-19-panoptic/maskformer_panoptic_R50_bs16_90k.yaml": {
        **RECIPES["cityscapes-19/maskformer_R101_bs16_90k.yaml"],
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
        "DATASETS.TRAIN": ["cityscapes_fine_panoptic_train"],
        "DATASETS.TEST": ["cityscapes_fine_panoptic_val"],
        "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
    },
}


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}


@functools.cache
def resolved(path: Path) -> dict[str, Any]:
    cfg: CfgNode = load_config(str(path))
    return flatten(cfg)


def model_of(name: str) -> str:
    """What the model of a file is built by, but for numbers of classes and queries."""
    others: tuple[str, ...] = (
        *("MODEL.WEIGHTS", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"),
        *("MODEL.MASK_FORMER.TEST.", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
        *("MODEL.EOMT.IMAGE_SIZE", "MODEL.EOMT.ANNEALING"),
    )
    values = {key: value for key, value in resolved(CONFIGS / name).items() if key.startswith("MODEL.")}
    if "Swin" in values["MODEL.BACKBONE.NAME"]:
        others += ("MODEL.RESNETS.",)
    return repr({key: value for key, value in values.items() if not key.startswith(others)})


ONE_OF_EACH_MODEL = {model_of(name): name for name in reversed(LEAVES)}
SLOWLY_BUILT = {name for name in SECOND if "swin_tiny" not in name} | {
    name for name in released.EOMT if "small" not in name
}


def defaults() -> dict[str, Any]:
    cfg = get_cfg()
    add_maskformer_config(cfg)
    return {**flatten(cfg), "MODEL.DEVICE": resolve_device("auto")}


@pytest.mark.parametrize("name", [*RECIPES, *OURS, *released.EOMT])
def test_every_key_is_the_released_one_or_a_deviation_with_a_reason(name: str):
    path = CONFIGS / name
    deviations = [deviation for deviation in DEVIATIONS if fnmatch.fnmatch(name, deviation[0])]
    ours = {key: value for _, key, value, _ in deviations}
    # Beside what EoMT reads, its recipes have what all have.
    others = resolved(CONFIGS / "base" / "common.yaml") if name in released.EOMT else defaults()
    assert resolved(path) == {**others, **{**RECIPES, **OURS, **released.EOMT}[name], **ours}
    base = path.parent / yaml.safe_load(path.read_text())["_BASE_"]
    for *_, reason in deviations:
        assert reason in path.read_text() + base.read_text()


def test_every_released_recipe_has_its_file():
    assert (len(released.FIRST), len(released.SECOND), len(SECOND), len(released.EOMT)) == (30, 57, 47, 23)
    trainable = {name for name in LEAVES if "_bs" in name or name.startswith("eomt/")}
    assert trainable == {*RECIPES, *OURS, *released.EOMT}


@pytest.mark.parametrize("dataset", ["ade20k", "coco"])
def test_stuff_of_eomts_recipes_is_the_datasets(dataset: str):
    register_all("no such folder")
    cfg = load_config(str(CONFIGS / f"eomt/{dataset}_panoptic_large_640.yaml"))
    (stuff,) = (ids for name, ids in released.EOMT_STUFF.items() if f".{dataset}_panoptic." in name)
    assert set(range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)) - resolve_classes(cfg).things == set(stuff)


@pytest.mark.parametrize("name", FILES)
def test_file_is_plain_yaml(name: str):
    assert isinstance(yaml.safe_load((CONFIGS / name).read_text()), dict)


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_states_only_differences_from_its_base(name: str):
    content = yaml.safe_load((CONFIGS / name).read_text())
    path = CONFIGS / name
    base, own = resolved((path.parent / content.pop("_BASE_")).resolve()), resolved(path)
    repeated = {key for key in flatten(content) if key in base and base[key] == own[key]}
    assert repeated <= {"MODEL.WEIGHTS"}  # "" is worth saying: trained from scratch


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_says_which_data_it_trains_on_and_is_measured_by(name: str):
    values = resolved(CONFIGS / name)
    assert values["DATASETS.TRAIN"]
    assert values["DATASETS.TEST"]


def test_iterations_and_batch_are_those_in_the_file_name():
    for name in [*RECIPES, *OURS]:
        values = resolved(CONFIGS / name)
        batch, iterations = values["SOLVER.IMS_PER_BATCH"], values["SOLVER.MAX_ITER"]
        epochs = iterations * batch / COCO_IMAGES
        lengths = {f"_bs{batch}_{iterations // 1000}k", f"_bs{batch}_{epochs:.0f}ep"}
        misnamed = name.endswith("ade20k/semantic-segmentation/maskformer2_R101_bs16_90k.yaml")  # as released: 160k
        assert any(length in name for length in lengths) != misnamed


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOWLY_BUILT else [])
        for name in ONE_OF_EACH_MODEL.values()
    ],
)
def test_model_of_every_file_is_built_and_runs(name: str):
    cfg = load_config(str(CONFIGS / name))
    whole, *parts = analyze(cfg, (64, 64), depth=1)
    assert [part.name for part in parts] == PARTS[cfg.MODEL.META_ARCHITECTURE]
    assert whole.parameters == sum(part.parameters for part in parts)
    assert all(part.multiply_adds > 0 for part in parts if part.name != "q")


class BackboneAlone(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.backbone = build_backbone(cfg)


def test_weights_of_r101_recipes_are_torchvisions_and_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    release = torchvision.models.ResNet101_Weights.IMAGENET1K_V1
    assert release.url == TORCHVISION
    cfg = load_config(str(CONFIGS / "ade20k-150/maskformer_R101_bs16_160k.yaml"), ["MODEL.DEVICE", "cpu"])
    normalised = release.transforms()
    assert (cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == ("RGB", False)
    assert pytest.approx([255 * value for value in normalised.mean]) == cfg.MODEL.PIXEL_MEAN
    assert pytest.approx([255 * value for value in normalised.std]) == cfg.MODEL.PIXEL_STD
    with torch.device("meta"):
        names = {name: value.shape for name, value in torchvision.models.resnet101().state_dict().items()}
    torch.save({name: torch.full(shape, 0.5) for name, shape in names.items()}, tmp_path / "resnet101.pth")
    model = BackboneAlone(cfg)
    checkpointer = Checkpointer(model)
    fetched: list[str] = []
    monkeypatch.setattr(
        checkpointer.path_manager,
        "get_local_path",
        lambda path, **_: fetched.append(path) or str(tmp_path / "resnet101.pth"),
    )
    checkpointer.load(cfg.MODEL.WEIGHTS)
    assert set(fetched) == {TORCHVISION}
    assert all((value == 0.5).all() for value in model.state_dict().values())
