"""Swin Transformers as released for ImageNet, and timm's, as backbones."""

from __future__ import annotations

from .layout import Layout, StateDict, drop
from .names import NameMap

# timm counts a patch merging to the stage after it.
_NAMES = NameMap(
    [
        ("layers.{i}.downsample.", "backbone.layers.{i}.downsample."),
        ("layers.", "backbone.layers."),
        ("patch_embed.", "backbone.patch_embed."),
        ("absolute_pos_embed", "backbone.absolute_pos_embed"),
    ]
)
_TIMM_NAMES = NameMap([("layers.{1+i}.downsample.", "backbone.layers.{i}.downsample.")])


def convert_swin(state: StateDict) -> StateDict:
    """Bring a released Swin Transformer's parameters to our names.

    Its last norm and its classifier keep their names: norms of the four outputs take their place here, and start anew.

    Args:
        state: the release's names, or timm's.
    """
    is_timm = any(name.startswith("layers.3.downsample.") for name in state)
    state = drop(state, r"\.attn_mask$")  # our blocks make it for the size of their input
    return {(is_timm and _TIMM_NAMES.to_ours(name)) or _NAMES.to_ours(name) or name: state[name] for name in state}


SWIN = Layout(
    name="Swin Transformer release or timm Swin",
    marks=(r"patch_embed\.proj\.weight$", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table$"),
    convert=convert_swin,
    backbone_only=True,
    never_holds=r"backbone\.norm\d\.|\.relative_position_index$",
)
