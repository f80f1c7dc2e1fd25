"""Configuration: plain YAML, defaults, explained mistakes."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg

from maskformer.config import add_maskformer_config, load_config
from maskformer.engine import resolve_device
from maskformer.structures import InputError

DEFAULTS = {
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.SIZE_DIVISIBILITY": -1,
    "INPUT.IMAGE_SIZE": 1024,
    "INPUT.MIN_SCALE": 0.1,
    "INPUT.MAX_SCALE": 2.0,
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 0,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 20.0,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 12544,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DROPOUT": 0.1,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.DEC_LAYERS": 6,
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 224,
    "MODEL.SWIN.PATCH_SIZE": 4,
    "MODEL.SWIN.EMBED_DIM": 96,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
    "MODEL.SWIN.WINDOW_SIZE": 7,
    "MODEL.SWIN.MLP_RATIO": 4.0,
    "MODEL.SWIN.QKV_BIAS": True,
    "MODEL.SWIN.QK_SCALE": None,
    "MODEL.SWIN.DROP_RATE": 0.0,
    "MODEL.SWIN.ATTN_DROP_RATE": 0.0,
    "MODEL.SWIN.DROP_PATH_RATE": 0.3,
    "MODEL.SWIN.APE": False,
    "MODEL.SWIN.PATCH_NORM": True,
    "MODEL.SWIN.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SWIN.USE_CHECKPOINT": False,
}


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def value_of(cfg, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("key", DEFAULTS)
def test_default_is_the_released_one(key):
    cfg = get_cfg()
    add_maskformer_config(cfg)
    assert value_of(cfg, key) == DEFAULTS[key]


def test_leaf_overrides_base_and_options_override_both(tmp_path):
    write(tmp_path / "base.yaml", "MODEL:\n  MASK_FORMER: {NHEADS: 2, DEC_LAYERS: 3}\nSOLVER: {BASE_LR: 0.5}\n")
    leaf = write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nMODEL:\n  MASK_FORMER: {NHEADS: 4}\n")
    cfg = load_config(leaf, ["SOLVER.BASE_LR", "0.25"])
    assert (cfg.MODEL.MASK_FORMER.NHEADS, cfg.MODEL.MASK_FORMER.DEC_LAYERS, cfg.SOLVER.BASE_LR) == (4, 3, 0.25)


def test_device_is_one_that_is_there_until_named():
    assert (
        load_config("").MODEL.DEVICE == load_config("", ["MODEL.DEVICE", "auto"]).MODEL.DEVICE == resolve_device("auto")
    )
    torch.device(load_config("").MODEL.DEVICE)  # PyTorch knows no "auto", so Detectron2 may see none
    assert load_config("", ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"


def test_size_list_of_the_original_files_is_read_as_data(tmp_path):
    text = 'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]\n'
    sizes = load_config(write(tmp_path / "c.yaml", text)).INPUT.MIN_SIZE_TRAIN
    assert sizes == (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:eval [\"__import__('os').getcwd()\"]",
        '!!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)] + [exit()]"]',
        "!!python/object/apply:os.getcwd []",
        "!!python/name:os.system",
    ],
)
def test_code_in_a_file_is_refused(tmp_path, value):
    with pytest.raises(InputError, match=r"c\.yaml is not plain YAML"):
        load_config(write(tmp_path / "c.yaml", f"INPUT:\n  MIN_SIZE_TRAIN: {value}\n"))


def test_unknown_key_is_refused_with_close_ones(tmp_path):
    path = write(tmp_path / "c.yaml", "MODEL:\n  MASK_FORMER: {NUM_QUERIES: 3}\n")
    with pytest.raises(
        InputError, match=r"MODEL\.MASK_FORMER\.NUM_QUERIES in .*c\.yaml does not exist.*NUM_OBJECT_QUERIES"
    ):
        load_config(path)
    with pytest.raises(InputError, match=r"SOLVER\.BASE_LEARNING_RATE in the command line does not exist"):
        load_config("", ["SOLVER.BASE_LEARNING_RATE", "1"])


def test_value_of_another_type_is_refused_by_key():
    with pytest.raises(InputError, match=r"the command line.*NHEADS"):
        load_config("", ["MODEL.MASK_FORMER.NHEADS", "many"])


def test_odd_number_of_options_is_refused():
    with pytest.raises(InputError, match="KEY VALUE"):
        load_config("", ["MODEL.DEVICE"])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml cannot be read"):
        load_config(str(tmp_path / "absent.yaml"))
