"""How a model's network is run: compiled by ``torch.compile`` or step by step, and in which precision."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn

from maskformer.meta_arch import MaskClassifier
from maskformer.modeling.backbones.swin import D2SwinTransformer
from maskformer.runs.failures import is_out_of_memory
from maskformer.structures import InputError

from .accelerator import Accelerator

logger = logging.getLogger(__name__)

# Sizes of batches that each get a network of their own; for all others there is one, whose sizes are variables.
SIZES_OF_THEIR_OWN = {"default": 1, "max-autotune": 8}
MOST_FORMS = 8  # of the network for all other sizes: batches of one image and of several, very small ones, ...


def run_as_configured(cfg: CfgNode, model: nn.Module) -> None:
    """Have the network of a model run as ``MODEL.COMPILE`` and ``MODEL.PRECISION`` say.

    Names of parameters, results and their types stay as they are, and the model can be copied and pickled.

    Args:
        cfg: the whole config, with the device resolved.
        model: what ``build_model(cfg)`` gave.

    Raises:
        InputError: the device does not compute in that precision, or the model's network is not known.
    """
    mode, name, precision = cfg.MODEL.COMPILE, cfg.MODEL.PRECISION, None
    if mode == "none" and name == "float32":
        return
    accelerator = Accelerator(cfg.MODEL.DEVICE)
    if name != "float32":
        precision = accelerator.half_precision(name, key="MODEL.PRECISION", off="it to float32")
        logger.info("Evaluation and prediction: products of the network in %s on %s", precision, accelerator.type)
    if isinstance(model, MaskClassifier):
        parts: list[tuple[nn.Module, str]] = [(model, "encode"), (model, "predict_layers")]
    elif isinstance(model, SemanticSegmentor):
        parts = [(model.backbone, "forward"), (model.sem_seg_head, "class_logits")]
    else:
        raise InputError(
            f"MODEL.COMPILE is {mode!r} and MODEL.PRECISION {name!r}, which MaskFormer, EoMT and SemanticSegmentor "
            f"heed, but MODEL.META_ARCHITECTURE {type(model).__name__} does not: set them to 'none' and 'float32'."
        )
    # With sizes that are variables, PyTorch 2.14's compiler works on the indices of shifted windows for over 8 minutes.
    any_size = not any(isinstance(module, D2SwinTransformer) for module in model.modules())
    for module, method in parts:
        if hasattr(module, method):
            setattr(module, method, NetworkPart(module, method, mode, accelerator, precision, any_size=any_size))


class NetworkPart:
    """Stands where a method of a module does, and computes the same: compiled, and in evaluation in half precision.

    What the compiler cannot do, or cannot be had for, is computed step by step; that is said once.

    Args:
        module: whose method it is.
        method: its name. It takes a tensor, or a dict of tensors.
        mode: ``MODEL.COMPILE``.
        accelerator: where the module is.
        precision: of products where the module is in evaluation mode; None: as they are.
        any_size: it may be compiled with sizes that are variables; else some sizes are compiled, all others are not.
    """

    def __init__(
        self,
        module: nn.Module,
        method: str,
        mode: str,
        accelerator: Accelerator,
        precision: torch.dtype | None,
        *,
        any_size: bool = True,
    ):
        self.module, self.method, self.mode, self.any_size = module, method, mode, any_size
        self.accelerator, self.precision = accelerator, precision
        self._forget()

    def _forget(self) -> None:
        self._sizes: set[Any] = set()  # that have a network of their own
        self._compiled: dict[bool, Callable[..., Any]] = {}  # by whether it is for all other sizes
        self._is_off = self.mode == "none"
        self._has_reached_limit = False

    def __getstate__(self) -> dict[str, Any]:
        """What is compiled is of this process alone."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __call__(self, *args: Any) -> Any:
        """What the method gives; in evaluation in float32, whatever it was computed in."""
        precision = None if self.module.training else self.precision
        with self.accelerator.autocast(precision):
            results = self._run(args)
        return results if precision is None else _in_float32(results)

    def _run(self, args: tuple[Any, ...]) -> Any:
        # Whoever trains without gradients looks for what was not finite, by hooks that a compiled network knows not of.
        looks = self.module.training and not torch.is_grad_enabled()
        if self._is_off or looks:
            return self._step_by_step(*args)
        sizes: tuple[Any, ...] = (torch.is_grad_enabled(), *(tuple(x.shape) for x in _tensors(args[0])))
        is_for_others = sizes not in self._sizes and len(self._sizes) >= self._most_sizes
        if is_for_others and not self.any_size:
            self._tell_limit(f"for {self._most_sizes} sizes", args)
            return self._step_by_step(*args)
        if is_for_others not in self._compiled or not (is_for_others or sizes in self._sizes):
            self._announce(sizes[1], is_for_others)
        if not is_for_others:
            self._sizes.add(sizes)
        try:
            results = self._compiled[is_for_others](*args)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
            return self._give_up(error, args)
        # CUDA graphs write the next results where these lie.
        keeps = self.mode == "max-autotune" and self.accelerator.type != "cpu" and not torch.is_grad_enabled()
        return _each(results, Tensor.clone) if keeps else results

    @property
    def _most_sizes(self) -> int:
        """How many get a network of their own."""
        return SIZES_OF_THEIR_OWN[self.mode if self.any_size else "max-autotune"]

    def _announce(self, size: tuple[int, ...], is_for_others: bool) -> None:
        """Say what is compiled now, and have it compiled with the first call."""
        if is_for_others:
            logger.info(
                "Compiling the network for all other sizes, in at most %d forms; the first: %s", MOST_FORMS, _text(size)
            )
        else:
            number = len(self._sizes) + 1, self._most_sizes
            logger.info("Compiling the network for %s (size %d of at most %d)", _text(size), *number)
        if is_for_others in self._compiled:
            return
        known = inspect.signature(torch.compile).parameters
        limit = MOST_FORMS if is_for_others else self._most_sizes
        # In PyTorch 2.14. Each form may be there for inference mode and without it.
        limits: dict[str, Any] = {"recompile_limit": 2 * limit, "isolate_recompiles": True}
        self._compiled[is_for_others] = torch.compile(
            self._step_by_step,
            fullgraph=True,
            dynamic=is_for_others,
            mode="default" if is_for_others else self.mode,
            **{name: value for name, value in limits.items() if name in known},
        )

    def _give_up(self, error: Exception, args: tuple[Any, ...]) -> Any:
        results = self._step_by_step(*args)  # an error that has nothing to do with the compiler is raised here
        if "RecompileLimit" in type(error).__name__:
            self._tell_limit(f"in {MOST_FORMS} forms", args)
            return results
        self._is_off = True
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        logger.warning(
            "MODEL.COMPILE is %s, but the network cannot be compiled on %s: it is computed step by step (%s)",
            self.mode, self.accelerator.type, reason,
        )  # fmt: skip
        return results

    def _tell_limit(self, forms: str, args: tuple[Any, ...]) -> None:
        if not self._has_reached_limit:
            logger.warning(
                "The network has been compiled %s: a batch of %s, and what fits none of them, is computed step by step",
                forms, _text(_tensors(args[0])[0].shape),
            )  # fmt: skip
        self._has_reached_limit = True

    def _step_by_step(self, *args: Any) -> Any:
        return getattr(type(self.module), self.method)(self.module, *args)


def _tensors(value: Any) -> list[Tensor]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _text(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _each(results: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The tensors of results, in a dict, a tuple or alone, each changed."""
    if isinstance(results, dict):
        return {name: change(value) for name, value in results.items()}
    return tuple(map(change, results)) if isinstance(results, tuple) else change(results)


def _in_float32(results: Any) -> Any:
    return _each(results, lambda x: x.to(torch.promote_types(x.dtype, torch.float32)))
