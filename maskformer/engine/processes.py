"""What several processes cannot train, said before they start to."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from maskformer.structures import InputError

_PARTS = {"build_timm_backbone": "TIMM", "build_resnet_backbone": "RESNETS", "D2SwinTransformer": "SWIN"}


def check_for_several_processes(cfg: CfgNode, model: nn.Module) -> None:
    """Refuse what PyTorch refuses in several processes, and in the midst of the training.

    Args:
        cfg: the whole config.
        model: not yet wrapped.

    Raises:
        InputError: the model has PyTorch's SyncBN on CPUs, or a feature of the backbone is read by nothing, so that
            parameters get no gradient.
    """
    if comm.get_world_size() == 1:
        return
    _check_norms(cfg, model)
    _check_features(cfg, model)


def _check_norms(cfg: CfgNode, model: nn.Module) -> None:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if cfg.MODEL.DEVICE != "cpu" or not names:
        return
    parts = [part for part, node in cfg.MODEL.items() if isinstance(node, CfgNode) and node.get("NORM") == "SyncBN"]
    others = {"TIMM": "'' or FrozenBN"}
    changes = [f"MODEL.{part}.NORM to {others.get(part, 'naiveSyncBN')}" for part in parts]
    raise InputError(
        f"{len(names)} layers ({names[0]}, ...) are PyTorch's SyncBN, which several processes have on accelerators "
        f"alone, and MODEL.DEVICE is cpu: set {' and '.join(changes) or 'them to naiveSyncBN'}, or train in one "
        "process."
    )


def _check_features(cfg: CfgNode, model: nn.Module) -> None:
    part = _PARTS.get(cfg.MODEL.BACKBONE.NAME)
    backbone, head = getattr(model, "backbone", None), getattr(model, "sem_seg_head", None)
    decoder = getattr(head, "pixel_decoder", None)
    if part is None or backbone is None or decoder is None or not any(p.requires_grad for p in backbone.parameters()):
        return
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    read = {*decoder.feature_names, getattr(head, "transformer_in_feature", "")}
    coarsest = max(strides[name] for name in strides if name in read)
    unread = [name for name in strides if strides[name] > coarsest]
    if unread:
        raise InputError(
            f"MODEL.{part}.OUT_FEATURES is {list(strides)}, but nothing reads {', '.join(unread)}, and several "
            f"processes need a gradient of every parameter: set it to "
            f"{[name for name in strides if name not in unread]}."
        )
