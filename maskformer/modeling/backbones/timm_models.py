"""What timm gives: its models as networks of features, built for images of any size, and their files' tensors."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskformer.structures import InputError

# What makes models of a fixed size take any; most take any without, and know neither word.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
_MOST_CELLS_OFF = 4  # of features: convolutions without padding lose cells


def import_timm() -> Any:
    """The package, or an ``InputError`` where it is missing."""
    try:
        import timm  # here: it is an extra, and takes a second
    except ImportError as error:
        raise InputError(
            "MODEL.BACKBONE.NAME is 'build_timm_backbone', which needs the package timm: pip install timm, or choose "
            "another backbone."
        ) from error
    return timm


def _create(name: str, options: Mapping[str, Any]) -> Any:
    """A model as a network that gives features, of random parameters; a TypeError where an option is unknown."""
    timm = import_timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        names = f"close are {', '.join(close)}" if close else "such as resnet50 or convnext_tiny"
        raise InputError(
            f"MODEL.TIMM.NAME is {name!r}, expected a model of timm {timm.__version__}: {names}; timm.list_models() "
            "gives all."
        )
    try:
        return timm.create_model(name, features_only=True, **options)
    except (AttributeError, NotImplementedError, RuntimeError) as error:  # each of timm's families has its own
        raise InputError(f"MODEL.TIMM.NAME {name} gives no features ({error}): choose another model.") from error


def describe_features(name: str, options: Mapping[str, Any]) -> Any:
    """What timm knows of a model's features."""
    with torch.device("meta"):  # nothing is computed
        try:
            return _create(name, options).feature_info
        except TypeError as error:
            raise InputError(
                f"MODEL.TIMM.NAME {name} has not the options {', '.join(options)} ({error}): set "
                "MODEL.TIMM.DROP_PATH_RATE to 0, or choose another model."
            ) from error


@torch.inference_mode(False)
@torch.enable_grad()
def build_for_any_size(name: str, options: dict[str, Any], stride: int) -> tuple[Any, bool]:
    """The network, once a small image shows that it takes any size, and whether its features are on other grids.

    Adds to ``options`` what makes it so. What no feature depends on is not trained.
    """
    problem: object = ""
    for words, scale in itertools.product(_ANY_SIZE, (1, 4)):  # some need larger images than two cells
        try:
            network = _create(name, {**options, **words}).eval()
        except TypeError:
            continue
        size = (2 * scale * stride, 3 * scale * stride)
        try:
            outputs = channels_first(network, network(torch.zeros(1, options["in_chans"], *size)))
        except (AssertionError, RuntimeError, ValueError) as error:
            problem = error
            continue
        info = network.feature_info
        expected = [
            (channels, *(side // fine for side in size)) for channels, fine in zip(info.channels(), info.reduction())
        ]
        found = [tuple(output.shape[1:]) for output in outputs]
        if all(abs(a - b) <= _MOST_CELLS_OFF for pair in zip(found, expected) for a, b in zip(*pair)):
            _freeze_unused(network, outputs)
            options.update(words)
            return network.train(), found != expected
        problem = f"its features have {found} channels, rows and columns, expected {expected}"
    raise InputError(
        f"MODEL.TIMM.NAME {name} does not take images of any size, as a backbone must ({str(problem)[:200]}): choose "
        "another model."
    )


def _freeze_unused(network: nn.Module, outputs: Sequence[Tensor]) -> None:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    total = torch.stack([output.sum() for output in outputs]).sum()
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True)):
        parameter.requires_grad_(gradient is not None)


def channels_first(network: nn.Module, outputs: Sequence[Tensor]) -> list[Tensor]:
    """(B, channels, rows, columns) each."""
    if str(getattr(network, "output_fmt", "")).endswith("NHWC"):
        return [output.permute(0, 3, 1, 2).contiguous() for output in outputs]
    return list(outputs)


def whole_model(name: str) -> Any:
    """With its classifier, and without values: names, shapes, and what timm knows of its files."""
    with torch.device("meta"):
        return import_timm().create_model(name)


def convert_weights(
    state: Mapping[str, Tensor], name: str, options: Mapping[str, Any], own_names: Iterable[str]
) -> dict[str, Tensor]:
    """Bring the tensors of a file of a whole model to the names and channels of its network of features.

    timm loads them itself, for it knows the older forms of its files, and how the first convolution becomes one for
    other channels: first into the whole model, where none may be missing but the classifier's, then into the network.

    Args:
        state: tensors by timm's names.
        name: of the model.
        options: that the network was built with.
        own_names: of the network's tensors.

    Raises:
        InputError: they are another model's, or not all.
    """
    whole = whole_model(name)
    expected, about = whole.state_dict(), whole.pretrained_cfg
    any_classes = {key: torch.zeros(expected[key].shape) for key in expected if _belongs(key, about.get("classifier"))}
    state = {key: tensor for key, tensor in state.items() if key not in any_classes}
    channels = _channels_of(state, expected, about.get("first_conv"))
    source = {"input_size": (channels, *about["input_size"][1:])}
    try:
        loaded = _load(name, {"in_chans": channels}, {**source, "state_dict": {**state, **any_classes}})
        values, own = loaded.state_dict(), set(own_names)
        if own <= values.keys():  # a network of its own kind, not one around the whole model
            values = {key: values[key] for key in own}
        network = _load(name, {**options, "features_only": True}, {**source, "state_dict": values})
    except Exception as error:  # whatever a foreign file leads timm's converters to
        needed = {key: expected[key] for key in expected if key not in any_classes}
        raise InputError(_explain_misfit(name, state, needed, error)) from error
    found = network.state_dict()
    return {key: found[key] for key in own_names}


def _load(name: str, options: Mapping[str, Any], about_weights: Mapping[str, Any]) -> Any:
    """A model with the ``state_dict`` of ``about_weights``, which stands in the place of a download."""
    return import_timm().create_model(name, pretrained=True, pretrained_cfg_overlay=dict(about_weights), **options)


def _belongs(name: str, modules: str | Sequence[str] | None) -> bool:
    """Whether a parameter is one of these modules'."""
    return name.rpartition(".")[0] in ((modules,) if isinstance(modules, str) else modules or ())


def _channels_of(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], first: Any) -> int:
    """The channels of the images that a file's first convolution takes; 3 where it cannot be told."""
    for name in expected:
        if _belongs(name, first) and name in state and state[name].ndim == 4:
            ours, theirs = expected[name].shape, state[name].shape
            if theirs[1] != ours[1] and ours[1] == 3:
                return theirs[1]
    return 3


def _explain_misfit(name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], error: Exception) -> str:
    missing = [known for known in expected if known not in state]
    other = next((known for known in expected if known in state and state[known].shape != expected[known].shape), None)
    if other is not None:
        what = f"{other} has shape {tuple(state[other].shape)}, expected {tuple(expected[other].shape)}"
    elif missing:
        what = f"{len(missing)} of {len(expected)} tensors are missing, first {missing[0]}"
    elif more := [known for known in state if known not in expected]:
        what = f"{len(more)} tensors are not the model's, first {more[0]}"
    else:
        what = str(error)[:200]
    return f"{what}, for MODEL.TIMM.NAME is {name}. Set it to the file's model, or MODEL.WEIGHTS to another file."
