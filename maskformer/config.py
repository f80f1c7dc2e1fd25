"""Every configuration key that MaskFormer adds to Detectron2, with its meaning, unit and range."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from maskformer.config_values import check_unread, check_values
from maskformer.own_datasets import absolute_paths, read_own_datasets
from maskformer.structures import InputError, OwnDataset


def add_maskformer_config(cfg: CfgNode) -> None:
    """Add MaskFormer's keys and defaults to a Detectron2 config, in place.

    Args:
        cfg: what ``detectron2.config.get_cfg()`` gave.
    """
    add_deeplab_config(cfg)  # poly schedule, INPUT.CROP.SINGLE_CATEGORY_MAX_AREA
    _add_input_keys(cfg.INPUT)
    _add_loader_keys(cfg.DATALOADER)
    _add_solver_keys(cfg.SOLVER)
    _add_head_keys(cfg.MODEL.SEM_SEG_HEAD)
    # A user's own datasets: see maskformer/own_datasets.py. Their paths are relative to the file that they stand in.
    cfg.DATASETS.OWN = CfgNode(new_allowed=True)
    cfg.MODEL.MASK_FORMER = _mask_former_keys()
    cfg.MODEL.SWIN = _swin_keys()
    cfg.MODEL.MASK_ON = True  # Detectron2's own DatasetMapper, if somebody trains with it, shall read masks
    # An evaluation goes on after the last image of one that was interrupted, of the same weights, configuration, data
    # and code in the same OUTPUT_DIR; False: all images are measured.
    cfg.TEST.RESUME = True
    # A score of the evaluations during training, such as "sem_seg/mIoU" or "panoptic_seg/PQ" (with several datasets in
    # DATASETS.TEST: "DATASET/sem_seg/mIoU"): the checkpoint with the highest is kept as model_best.pth. "": none is.
    cfg.TEST.BEST_METRIC = ""
    cfg.LOG = CfgNode()
    # Add the line of Tecorigin's tcap_dllogger for every iteration to the log; see docs/sdaa.md.
    cfg.LOG.TCAPPDLL_LINES = False


def _add_input_keys(node: CfgNode) -> None:
    # Which mapper turns an annotated image into a training example; see maskformer/data/mappers.
    node.DATASET_MAPPER_NAME = "mask_former_semantic"
    # SSD colour jitter (brightness, contrast, saturation, hue) during training.
    node.COLOR_AUG_SSD = False
    # Training crops are padded bottom/right to a multiple of this, in pixels; < 1: no padding.
    node.SIZE_DIVISIBILITY = -1
    # Mappers that end in _lsj: examples are squares of this many pixels,
    node.IMAGE_SIZE = 1024
    # cut from images scaled to fit the square times a random factor between these.
    node.MIN_SCALE = 0.1
    node.MAX_SCALE = 2.0


def _add_loader_keys(node: CfgNode) -> None:
    # What a training image does that cannot be used (truncated, of another size than its label, ...): "raise" stops the
    # training and names the file; "skip" names it in the log and takes another image in its place.
    node.ON_BAD_IMAGE = "raise"
    # "skip" stops too when more than so many different images cannot be used.
    node.MAX_BAD_IMAGES = 100


def _add_solver_keys(node: CfgNode) -> None:
    # "ADAMW" or "SGD".
    node.OPTIMIZER = "ADAMW"
    # Weight decay of embeddings (queries); normalisation layers have SOLVER.WEIGHT_DECAY_NORM.
    node.WEIGHT_DECAY_EMBED = 0.0
    # The backbone learns at BASE_LR times this.
    node.BACKBONE_MULTIPLIER = 0.1
    # With AMP.ENABLED, what products are computed in: "float16" (with loss scaling), "bfloat16", or "auto": bfloat16
    # where the device has it, else float16.
    node.AMP.PRECISION = "auto"
    # The IMS_PER_BATCH images of a step go through the model in this many parts, one after the other: the same step in
    # less memory. It must divide the images of a process.
    node.ACCUMULATION_STEPS = 1
    # A step whose loss, matching cost or gradient is NaN or infinite is skipped; after so many in a row the run stops.
    node.MAX_BAD_STEPS = 10
    # BASE_LR for another batch: times IMS_PER_BATCH / LR_REFERENCE_BATCH ("linear"), times its root ("sqrt", usual for
    # AdamW), or as it is ("none").
    node.LR_SCALING = "none"
    # The IMS_PER_BATCH that BASE_LR was chosen for.
    node.LR_REFERENCE_BATCH = 16
    # For how many seconds the last checkpoint is tried to be written again, if the disk refuses it.
    node.SAVE_RETRY_SECONDS = 600
    node.EMA = CfgNode()
    # Keep a moving average of the weights, and evaluate it beside them; see maskformer/engine/averaging.py.
    node.EMA.ENABLED = False
    # What the average keeps of itself at each step, 0 <= . < 1; less at the beginning.
    node.EMA.DECAY = 0.9999
    # How many of the checkpoints of every CHECKPOINT_PERIOD stay, the latest ones; 0: all.
    node.KEEP_LAST = 0
    # Compute so that two runs with the same SEED are equal bit for bit on one device; slower. Operations that have no
    # such form there are named in the log.
    node.DETERMINISTIC = False


def _add_head_keys(node: CfgNode) -> None:
    # C, the width of mask and pixel embeddings.
    node.MASK_DIM = 256
    # Encoder layers on the coarsest feature, in TransformerEncoderPixelDecoder.
    node.TRANSFORMER_ENC_LAYERS = 0
    # "BasePixelDecoder" or "TransformerEncoderPixelDecoder".
    node.PIXEL_DECODER_NAME = "BasePixelDecoder"


def _mask_former_keys() -> CfgNode:
    node = CfgNode()
    # Loss.
    node.DEEP_SUPERVISION = True  # a loss on every decoder layer, not only the last
    node.NO_OBJECT_WEIGHT = 0.1  # weight of the class "no object" in the cross-entropy
    node.DICE_WEIGHT = 1.0  # of the dice loss and cost; the class weight is 1
    node.MASK_WEIGHT = 20.0  # of the focal loss and cost
    # Transformer.
    node.NHEADS = 8
    node.DROPOUT = 0.1  # probability, 0..1
    node.DIM_FEEDFORWARD = 2048
    node.ENC_LAYERS = 0  # encoder layers between input and decoder
    node.DEC_LAYERS = 6
    node.PRE_NORM = False  # normalise before each block instead of after it
    node.HIDDEN_DIM = 256  # D
    node.NUM_OBJECT_QUERIES = 100  # Q: the most segments one image can have
    node.TRANSFORMER_IN_FEATURE = "res5"  # what queries attend to: a backbone feature or "transformer_encoder"
    node.ENFORCE_INPUT_PROJ = False  # a 1x1 convolution before the transformer even where widths agree
    # The network input is padded to a multiple of this, in pixels; 0: only to the batch's largest image;
    # < 0: the backbone's own.
    node.SIZE_DIVISIBILITY = 32
    node.TEST = CfgNode()
    node.TEST.SEMANTIC_ON = True  # return "sem_seg"
    node.TEST.PANOPTIC_ON = False  # return "panoptic_seg"
    node.TEST.INSTANCE_ON = False  # return "instances"
    # "sem_seg" is the label of each pixel, (height,width) int32, instead of (K,height,width) scores, which take K times
    # the memory; averages over TEST.AUG or windows are taken of scores nevertheless.
    node.TEST.SEM_SEG_LABELS = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0  # panoptic: the least class probability of a kept query, 0..1
    node.TEST.OVERLAP_THRESHOLD = 0.0  # panoptic: the least visible fraction of a kept segment, 0..1
    # Crop padding and resize masks to the original size before, not after, classes are decided; always so for
    # panoptic and instance output.
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    # Semantic results of large images: (height, width) in pixels of the resized image; every window of that size goes
    # through the network alone, and scores are averaged. (): the whole image at once.
    node.TEST.SLIDING_WINDOW = ()
    node.TEST.SLIDING_WINDOW_OVERLAP = 0.33  # the least fraction of a window that the next one shares, 0 <= . < 1
    return node


def _swin_keys() -> CfgNode:
    node = CfgNode()
    node.PRETRAIN_IMG_SIZE = 224  # side in pixels of the images that the position embedding of APE is for
    node.PATCH_SIZE = 4  # pixels along a patch's side
    node.EMBED_DIM = 96  # channels of the first stage; each later one has twice as many
    node.DEPTHS = [2, 2, 6, 2]  # blocks of each stage
    node.NUM_HEADS = [3, 6, 12, 24]  # attention heads of each stage
    node.WINDOW_SIZE = 7  # cells along a window's side
    node.MLP_RATIO = 4.0  # hidden width of a block's network over its input's
    node.QKV_BIAS = True  # a bias on queries, keys and values
    node.QK_SCALE = None  # factor on inner products; None: one over the root of a head's width
    node.DROP_RATE = 0.0  # dropout of patches, projections and networks, 0..1
    node.ATTN_DROP_RATE = 0.0  # dropout of attention weights, 0..1
    node.DROP_PATH_RATE = 0.3  # probability of leaving out the last block in training, 0..1; linear from 0 at the first
    node.APE = False  # add a learned absolute position embedding, resized to the image
    node.PATCH_NORM = True  # normalise embedded patches
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # which stages' outputs are features
    node.USE_CHECKPOINT = False  # in training, compute activations twice instead of keeping them: less memory
    return node


def load_config(path: str, options: Sequence[str] = ()) -> CfgNode:
    """Detectron2's and our defaults, then a file, then options.

    A MODEL.DEVICE of "auto", which it is unless they name one, becomes an accelerator that is there, else the CPU: what
    Detectron2 builds from a configuration takes it as it is. Vendors' packages in ``ACCELERATORS`` of
    engine/accelerator.py are imported for it; one that is not there has to be imported before, or the device named.

    The file is read as plain YAML with ``_BASE_``; no code in it is ever run. Files of the original MaskFormer load
    too. ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` and ``IGNORE_VALUE`` follow from a dataset of ``DATASETS.OWN`` that is named
    first in ``DATASETS.TRAIN`` or ``TEST``, unless they are set beside or above it.

    Args:
        path: YAML file; "" for the defaults alone.
        options: KEY VALUE KEY VALUE ..., as on the command line.

    Raises:
        InputError: the file cannot be read, a key or the type of a value is wrong, a value is impossible, has no effect
            (see ``config_values``) or contradicts a dataset.
    """
    cfg = default_config()
    cfg.MODEL.DEVICE = "auto"
    layers = _read_layers(path) if path else []
    if path:
        content = functools.reduce(_merge, (content for _, content in layers))
        _check_keys(content, cfg, path)
        content.pop("VERSION", None)
        with _explained(path):
            cfg.merge_from_other_cfg(CfgNode(content))
        check_unread(cfg, default_config(), set(_set_in(layers[-1][1])))
    if len(options) % 2:
        raise InputError(f"Options come as KEY VALUE pairs; {' '.join(options)!r} has {len(options)} words.")
    for key, value in zip(options[::2], options[1::2]):
        _check_key(key, cfg, "the command line")
        with _explained("the command line"):
            cfg.merge_from_list([key, value])
    _check_dataset_names(cfg, path, options)
    _follow_own_dataset(cfg, layers, options)
    check_values(cfg)
    check_unread(cfg, default_config(), options[::2])
    if cfg.MODEL.DEVICE == "auto":
        from maskformer.engine.accelerator import resolve_device  # here: the rest of engine imports this module

        cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    return cfg


def default_config() -> CfgNode:
    """All keys at Detectron2's and our defaults."""
    cfg = get_cfg()
    add_maskformer_config(cfg)
    return cfg


def _follow_own_dataset(cfg: CfgNode, layers: list[tuple[str, dict[str, Any]]], options: Sequence[str]) -> None:
    """Set what follows from a dataset of DATASETS.OWN; what is set beside or above the block has to agree."""
    describing = [index for index, (_, content) in enumerate(layers) if _has_own(content)]
    if not describing:
        return
    source = layers[describing[-1]][0]
    dataset = _choose_own_dataset(cfg, source)
    if dataset is None:
        return
    head = cfg.MODEL.SEM_SEG_HEAD
    following = {"NUM_CLASSES": len(dataset.classes), "IGNORE_VALUE": dataset.ignore_label}
    for key, value in following.items():
        places = [place for place, content in layers[describing[0] :] if key in _head_of(content)]
        places += ["the command line"] if f"MODEL.SEM_SEG_HEAD.{key}" in options[::2] else []
        if value is not None and places and head[key] != value:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.{key} is {head[key]} in {places[-1]} but {value} follows from {dataset.key} in "
                f"{source} ({len(dataset.classes)} classes); expected the same: take MODEL.SEM_SEG_HEAD.{key} away or "
                "correct the dataset."
            )
        if value is not None:
            head[key] = value


def _check_dataset_names(cfg: CfgNode, path: str, options: Sequence[str]) -> None:
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if not isinstance(name, str):
                source = "the command line" if f"DATASETS.{key}" in options[::2] else path
                raise InputError(
                    f"DATASETS.{key} of {source} holds {name!r}; expected the names of datasets, such as "
                    "('shapes_panoptic_train',): correct the key."
                )


def _choose_own_dataset(cfg: CfgNode, source: str) -> OwnDataset | None:
    """The dataset that the model is for, if it is of DATASETS.OWN; relative paths of the command line are resolved."""
    for name, content in absolute_paths(cfg.DATASETS.OWN, os.getcwd()).items():
        cfg.DATASETS.OWN[name] = CfgNode(content) if isinstance(content, dict) else content
    try:
        datasets = {dataset.name: dataset for dataset in read_own_datasets(cfg.DATASETS.OWN)}
    except InputError as error:
        raise InputError(f"In {source}: {str(error) or type(error).__name__}") from error
    candidates = [*cfg.DATASETS.TRAIN[:1], *cfg.DATASETS.TEST[:1]]
    return next((datasets[name] for name in candidates if name in datasets), None)


def _has_own(content: dict[str, Any]) -> bool:
    return isinstance(content.get("DATASETS"), dict) and "OWN" in content["DATASETS"]


def _head_of(content: dict[str, Any]) -> dict[str, Any]:
    model = content.get("MODEL")
    head = model.get("SEM_SEG_HEAD") if isinstance(model, dict) else None
    return head if isinstance(head, dict) else {}


# What yacs raises for values that do not fit, and Python's parser of literals for those that no one would write.
_MERGE_ERRORS = (
    ValueError, LookupError, AssertionError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError
)  # fmt: skip


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except _MERGE_ERRORS as error:
        raise InputError(f"In {source}: {str(error) or type(error).__name__}") from error


def _check_keys(content: dict[str, Any], cfg: CfgNode, source: str, prefix: str = "") -> None:
    for key, value in content.items():
        _check_key(prefix + str(key), cfg, source)
        if isinstance(value, dict) and prefix + str(key) != "DATASETS.OWN":  # which has keys of the user's
            _check_keys(value, cfg, source, f"{prefix}{key}.")


def _set_in(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The full names of the keys that a file's content sets."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _set_in(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _check_key(key: str, cfg: CfgNode, source: str) -> None:
    node = cfg
    for depth, part in enumerate(key.split("."), start=1):
        if not isinstance(node, CfgNode) or part not in node:
            seen = ".".join(key.split(".")[:depth])
            known = list(_key_names(cfg))
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f" Close to it: {', '.join(close)}." if close else ""
            raise InputError(f"Configuration key {seen} in {source} does not exist.{hint}")
        node = node[part]


def _key_names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _key_names(value, f"{prefix}{key}.")


# One shape of text, read as data, never evaluated: [int(x * 0.1 * 512) for x in range(5, 21)]
_SIZE_LIST = re.compile(
    r"\[\s*int\(\s*x\s*\*\s*(?P<step>\d{1,6}(?:\.\d{1,6})?)\s*\*\s*(?P<size>\d{1,6})\s*\)\s+for\s+x\s+in\s+"
    r"range\(\s*(?P<start>\d{1,3})\s*,\s*(?P<stop>\d{1,3})\s*\)\s*\]"
)


_MOST_VALUES = 100_000  # in a configuration file, aliases replaced


class _ConfigLoader(yaml.SafeLoader):
    """Plain YAML, and the one tag that configuration files of the original repository carry."""


def _construct_size_list(loader: yaml.SafeLoader, node: yaml.Node) -> list[int]:
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    match = _SIZE_LIST.fullmatch(str(arguments[0]).strip()) if len(arguments) == 1 else None
    if match is None:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            "a Python expression is not read from a configuration file; write the list of numbers",
            node.start_mark,
        )
    step, size = float(match["step"]), int(match["size"])
    return [int(x * step * size) for x in range(int(match["start"]), int(match["stop"]))]


_ConfigLoader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_size_list)


def _read_layers(path: str, above: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A file after those that it is based on: path and content of each."""
    content = _read_yaml(path)
    if os.path.realpath(path) in above:  # after reading, which has refused what is no path
        raise InputError(f"Configuration file {path} is based on itself; correct _BASE_ in it or in what it names.")
    base = content.pop("_BASE_", None)
    if base is not None and not isinstance(base, str):
        raise InputError(f"Configuration file {path} has _BASE_ {base!r}; expected the path of one file.")
    if _has_own(content):
        content["DATASETS"]["OWN"] = absolute_paths(content["DATASETS"]["OWN"], os.path.dirname(path))
    if base is None:
        return [(path, content)]
    base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
    return [*_read_layers(base, (*above, os.path.realpath(path))), (path, content)]


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            loader = _ConfigLoader(file)
            node = loader.get_single_node()
        _check_expansion(node)
        content = (loader.construct_document(node) if node is not None else None) or {}
    except OSError as error:
        raise InputError(
            f"Configuration file {path} cannot be read: {error.strerror}. Check --config-file and _BASE_."
        ) from error
    except RecursionError as error:
        raise InputError(f"Configuration file {path} is not plain YAML: it is nested too deeply.") from error
    except (yaml.YAMLError, *_MERGE_ERRORS) as error:  # the latter for dates and numbers that are none
        raise InputError(f"Configuration file {path} is not plain YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"Configuration file {path} holds a {type(content).__name__}, expected keys and values.")
    return content


def _check_expansion(root: yaml.Node | None) -> None:
    """Refuse aliases within what they stand for, and aliases of aliases that make much out of little."""
    sizes: dict[int, int] = {}

    def measure(node: yaml.Node, above: frozenset[int]) -> int:
        if id(node) in above:
            raise ValueError("an alias stands for what it is part of")
        if id(node) not in sizes:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(measure(part, above | {id(node)}) for part in inner)
        return sizes[id(node)]

    if root is not None and measure(root, frozenset()) > _MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {_MOST_VALUES} values")


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_nodes = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_nodes else value
    return merged
