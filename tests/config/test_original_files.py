"""Configuration files of the original Mask2Former load unchanged, and mean what they mean there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode
from released import SECOND, Recipe

from maskformer.config import default_config, load_config

LEAVES = [name for name in SECOND if "/Base-" not in name]
# What such files say besides, though it is a default, or nothing reads it.
OF_BASES: Recipe = {
    "VERSION": 2,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "TEST.AUG.ENABLED": False,
    "TEST.AUG.FLIP": True,
}
OF_LEAVES: Recipe = {
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 12544,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,
}
OF_SWIN: Recipe = {"MODEL.SWIN.APE": False, "MODEL.SWIN.DROP_PATH_RATE": 0.3, "MODEL.SWIN.PATCH_NORM": True}


def flatten(node: dict[str, Any], prefix: str = "") -> Recipe:
    flat: Recipe = {}
    for key, value in node.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return json.loads(json.dumps(flat))  # lists for tuples


def write(path: Path, recipe: Recipe, base: str = "") -> Path:
    """A file as the original's authors write it, with their expression for the sizes of training images."""
    content: dict[str, Any] = {"_BASE_": base} if base else {}
    sizes = recipe.get("INPUT.MIN_SIZE_TRAIN")
    for key, value in recipe.items():
        *parts, last = key.split(".")
        node = content
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = "<sizes>" if value is sizes else value
    text = yaml.safe_dump(content, sort_keys=False)
    if sizes:
        expression = f"[int(x * 0.1 * {sizes[5]}) for x in range(5, 21)]"
        text = text.replace("<sizes>", f'!!python/object/apply:eval ["{expression}"]')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_original(folder: Path, name: str) -> Path:
    """The file of a recipe and those that it is based on: Base-*, and the one with ResNet-50 for one with Swin."""
    top = "/".join(name.split("/")[:3])
    base = next(key for key in SECOND if key.startswith(f"{top}/Base-"))
    resnet = next(key for key in LEAVES if key.startswith(top) and "_R50_" in key)
    write(folder / base, {**OF_BASES, **SECOND[base]})
    of_resnet = {**OF_LEAVES, **SECOND[resnet]}
    write(folder / resnet, without(of_resnet, SECOND[base]), base=Path(base).name)
    if name == resnet:
        return folder / name
    of_backbone = OF_SWIN if "/swin/" in name else {}
    differences = without({**of_backbone, **SECOND[name]}, {**SECOND[base], **SECOND[resnet]})
    return write(folder / name, differences, base=("../" if of_backbone else "") + Path(resnet).name)


def without(recipe: Recipe, base: Recipe) -> Recipe:
    return {key: value for key, value in recipe.items() if base.get(key) != value}


def meaning(cfg: CfgNode) -> Recipe:
    """What is no default of Detectron2's or the original's."""
    defaults = flatten(default_config())
    defaults["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"] = "MultiScaleMaskedTransformerDecoder"
    return {key: value for key, value in flatten(cfg).items() if value != defaults[key] and key != "MODEL.DEVICE"}


@pytest.mark.parametrize("name", LEAVES)
def test_file_of_the_original_means_the_released_recipe(tmp_path: Path, name: str):
    cfg = load_config(str(write_original(tmp_path, name)))
    assert meaning(cfg) == SECOND[name]
    (tmp_path / "config.yaml").write_text(cfg.dump())  # as a run writes it, with all keys
    assert meaning(load_config(str(tmp_path / "config.yaml"))) == SECOND[name]


def test_file_of_the_original_that_is_only_a_base_loads(tmp_path: Path):
    for name, recipe in SECOND.items():
        if name not in LEAVES:
            cfg = load_config(str(write(tmp_path / name, {**OF_BASES, **recipe})))
            assert meaning(cfg) == {
                **recipe,
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
            }


def test_query_decoder_that_a_file_leaves_out_is_the_originals_default(tmp_path: Path):
    name, key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE"
    recipe = SECOND["mask2former/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"]
    path = str(write(tmp_path / "a.yaml", {**recipe, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 112}))
    assert meaning(load_config(path)) == {**recipe, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 112}
    assert OF_LEAVES[name] == load_config("", [key, recipe[key]]).MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    path = str(write(tmp_path / "b.yaml", {**recipe, name: "StandardTransformerDecoder"}))
    assert load_config(path).MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME == "StandardTransformerDecoder"


def test_swin_file_may_repeat_what_its_resnet_has(tmp_path: Path):
    name = "mask2former/cityscapes/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_90k.yaml"
    cfg = load_config(str(write(tmp_path / "alone.yaml", {**OF_BASES, **OF_LEAVES, **OF_SWIN, **SECOND[name]})))
    assert meaning(cfg) == SECOND[name]
