"""A configuration file, with `_BASE_` and options, as a checked `CfgNode`."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from maskformer.structures import InputError, OwnDataset

from .keys import default_config
from .own_datasets import absolute_paths, complete_classes, read_own_datasets
from .unread import check_unread
from .values import MASKED, check_values

_MOST_BY_HAND = 200  # keys of one file; a run writes all there are


def load_config(path: str, options: Sequence[Any] = (), data: str = "") -> CfgNode:
    """Detectron2's and our defaults, then a file, then one that describes data, then options.

    A MODEL.DEVICE of "auto", which it is unless they name one, becomes an accelerator that is there, else the CPU: what
    Detectron2 builds from a configuration takes it as it is. Vendors' packages in ``ACCELERATORS`` of
    engine/accelerator.py are imported for it; one that is not there has to be imported before, or the device named.

    The file is read as plain YAML with ``_BASE_``; no code in it is ever run. Files of the original MaskFormer and
    Mask2Former load too. ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` and ``IGNORE_VALUE`` follow from a dataset of
    ``DATASETS.OWN`` that is named first in ``DATASETS.TRAIN`` or ``TEST``, unless they are set beside or above it.

    Args:
        path: YAML file; "" for the defaults alone.
        options: KEY VALUE KEY VALUE ..., as on the command line.
        data: YAML file whose keys, such as ``DATASETS``, are laid over those of ``path``, but for its ``_BASE_``; "":
            none.

    Raises:
        InputError: the file cannot be read, a key or the type of a value is wrong, a value is impossible, has no effect
            (see ``values``) or contradicts a dataset.
    """
    cfg = default_config()
    cfg.MODEL.DEVICE = "auto"
    layers = _read_layers(path) if path else []
    if data:
        layers.append(_read_layers(data, follow=False)[0])
        path = path or data
    if layers:
        content = functools.reduce(_merge, (content for _, content in layers))
        for key in _key_names(content):
            if not key.startswith("DATASETS.OWN."):  # those are of the user's choice
                _check_key(key, cfg, path)
        content.pop("VERSION", None)
        with _named(path):
            cfg.merge_from_other_cfg(CfgNode(content))
        _follow_levels(cfg, set(_key_names(content)))
        for _, content in layers[-2 if data else -1 :]:
            keys = set(_key_names(content))
            if len(keys) < _MOST_BY_HAND:  # else a run wrote it, also what its base brought
                check_unread(cfg, default_config(), keys)
    if len(options) % 2:
        raise InputError(f"Options come as KEY VALUE pairs; {' '.join(options)!r} has {len(options)} words.")
    for key, value in zip(options[::2], options[1::2]):
        _check_key(key, cfg, "the command line")
        with _named("the command line"):
            cfg.merge_from_list([key, value])
    _follow_levels(cfg, {*options[::2], *(name for _, content in layers for name in _key_names(content))})
    _refuse_none(cfg, default_config())
    _check_dataset_names(cfg, path, options)
    _follow_own_dataset(cfg, layers, options)
    check_values(cfg)
    check_unread(cfg, default_config(), options[::2])
    if cfg.MODEL.DEVICE == "auto":
        from maskformer.engine.accelerator import resolve_device  # here: the rest of engine imports this module

        cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    return cfg


def _follow_levels(cfg: CfgNode, keys_set: Collection[str]) -> None:
    """Have the query decoder that attends to levels where none is named, as the original's default is."""
    node, name = cfg.MODEL.MASK_FORMER, "TRANSFORMER_DECODER_NAME"
    if node.TRANSFORMER_IN_FEATURE == "multi_scale_pixel_decoder" and f"MODEL.MASK_FORMER.{name}" not in keys_set:
        node[name] = MASKED


def _refuse_none(node: CfgNode, defaults: CfgNode, prefix: str = "") -> None:
    """Refuse None, which yacs takes for a value of any type, where it is not the default."""
    for key, value in node.items():
        default = defaults.get(key)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _refuse_none(value, default, f"{prefix}{key}.")
        elif value is None and default is not None:
            raise InputError(f"{prefix}{key} is None; expected a value such as {default!r}, or to leave the key out.")


def as_options(keys: Mapping[str, Any]) -> list[Any]:
    """KEY VALUE KEY VALUE ... of what Python code gives by name, with a double underscore for each point of a key."""
    options: list[Any] = []
    for key, value in keys.items():
        is_text = isinstance(value, (os.PathLike, torch.device))
        options += [key.replace("__", "."), str(value) if is_text else value]
    return options


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
        full_key = f"MODEL.SEM_SEG_HEAD.{key}"
        places = [place for place, content in layers[describing[0] :] if full_key in _key_names(content)]
        places += ["the command line"] if full_key in options[::2] else []
        if value is not None and places and head[key] != value:
            raise InputError(
                f"{full_key} is {head[key]} in {places[-1]} but {value} follows from {dataset.key} in {source} "
                f"({len(dataset.classes)} classes); expected the same: take {full_key} away or correct the dataset."
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
    block = absolute_paths(cfg.DATASETS.OWN, os.getcwd())
    with _named(source):
        datasets = {dataset.name: dataset for dataset in read_own_datasets(block)}
    for name, content in complete_classes(block, datasets.values()).items():
        cfg.DATASETS.OWN[name] = CfgNode(content)
    candidates = [*cfg.DATASETS.TRAIN[:1], *cfg.DATASETS.TEST[:1]]
    return next((datasets[name] for name in candidates if name in datasets), None)


def _has_own(content: dict[str, Any]) -> bool:
    return isinstance(content.get("DATASETS"), dict) and "OWN" in content["DATASETS"]


# What yacs raises for values that do not fit, and Python's parser of literals for those that no one would write.
_MERGE_ERRORS = (
    ValueError, LookupError, AssertionError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError
)  # fmt: skip


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Have an error say where the value stands."""
    try:
        yield
    except _MERGE_ERRORS as error:
        raise InputError(f"In {source}: {str(error) or type(error).__name__}") from error


def _key_names(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The full names of the keys in a configuration, or in a file's content, those of parts too."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _key_names(value, f"{prefix}{key}.")


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


def _read_layers(path: str, above: tuple[str, ...] = (), *, follow: bool = True) -> list[tuple[str, dict[str, Any]]]:
    """A file after those that it is based on, unless these are not to be followed: path and content of each."""
    content = _read_yaml(path)
    if os.path.realpath(path) in above:  # after reading, which has refused what is no path
        raise InputError(f"Configuration file {path} is based on itself; correct _BASE_ in it or in what it names.")
    base = content.pop("_BASE_", None)
    if base is not None and not isinstance(base, str):
        raise InputError(f"Configuration file {path} has _BASE_ {base!r}; expected the path of one file.")
    if _has_own(content):
        content["DATASETS"]["OWN"] = absolute_paths(content["DATASETS"]["OWN"], os.path.dirname(path))
    if base is None or not follow:
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
