"""VisionTransformer: an image as a sequence of patches; DINOv2's and DINOv3's, whose blocks others may step through.

T tokens of D channels: a class token, registers, then the patches row by row; whoever adds tokens puts them in front.
Names of sub-modules are timm's for DINOv2, which the released weights have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_ROTATION_BASE = 100.0  # of DINOv3


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: D.
        num_heads: attention heads; divides D.
        key_bias: keys have a bias, as queries and values do.
    """

    def __init__(self, dim: int, *, num_heads: int, key_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        if not key_bias:
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, tokens: Tensor, scale: LayerScale, rotation: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            tokens: (B,T,D).
            scale: of results.
            rotation: (2,patches,D/heads), cosines and sines that turn queries and keys of the last tokens; None: no.
            allowed: (B,Q,T) bool, what each of the first Q tokens may attend to; None: everything. The others attend to
                everything in any case.

        Returns:
            (B,T,D).
        """
        bias = self.qkv.bias
        if bias is None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        projected = F.linear(tokens, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (B,heads,T,D/heads) each
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if allowed is None:
            attended = F.scaled_dot_product_attention(query, key, value)
        else:  # only the first rows need a mask
            first = query[:, :, : allowed.shape[1]], query[:, :, allowed.shape[1] :]
            masked = F.scaled_dot_product_attention(first[0], key, value, attn_mask=allowed[:, None])
            attended = torch.cat([masked, F.scaled_dot_product_attention(first[1], key, value)], dim=2)
        return scale.after(self.proj, attended.transpose(1, 2).flatten(2))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn pairs of channels of the last tokens of (B,heads,T,channels) by (2,patches,channels) cosines and sines.

    Source: RoFormer (arXiv 2104.09864), section 3.2.2; a pair is a channel and the one half the channels after it.
    """
    cosines, sines = rotation
    others, patches = x.split([x.shape[2] - cosines.shape[0], cosines.shape[0]], dim=2)
    left, right = patches.chunk(2, dim=-1)
    turned = patches * cosines + torch.cat([-right, left], dim=-1) * sines
    return torch.cat([others, turned.to(x.dtype)], dim=2)


def patch_rotation(
    rows: int, columns: int, head_dim: int, *, scale: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(2,rows*columns,head_dim): cosines and sines of each patch's place, half of the channels for its row.

    Args:
        rows: of patches.
        columns: likewise.
        head_dim: channels of a head, a multiple of 4.
        scale: of the coordinates, which go from -1 to 1.
        dtype: of the result.
        device: likewise.

    Source: DINOv3 (arXiv 2508.10104), section 3.2, "axial RoPE".
    """
    exponents = torch.arange(0, 1, 4 / head_dim, dtype=torch.float32, device=device)
    frequencies = 1 / _ROTATION_BASE**exponents
    # Places and frequencies are float32 in any case, as where the released weights were trained; angles are ``dtype``.
    y, x = (
        2 * math.pi * scale * ((torch.arange(length, dtype=torch.float32, device=device) + 0.5) / length * 2 - 1)
        for length in (rows, columns)
    )
    y, x = (place[:, None] * frequencies.to(dtype) for place in (y, x))  # (rows, head_dim / 4), (columns, ...)
    angles = torch.cat([y[:, None].expand(-1, columns, -1), x.expand(rows, -1, -1)] * 2, dim=-1).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()])


class FeedForward(nn.Module):
    """Two linear maps with a GELU between, or with SwiGLU, where one half of the hidden channels gates the other.

    Args:
        dim: D.
        hidden_dim: channels between; with SwiGLU, of both halves together.
        gated: SwiGLU (arXiv 2002.05202).
    """

    def __init__(self, dim: int, hidden_dim: int, *, gated: bool = False):
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim // 2 if gated else hidden_dim, dim)

    def forward(self, tokens: Tensor, scale: LayerScale) -> Tensor:
        """Map (...,D) to the same, scaled."""
        hidden = self.fc1(tokens)
        if not self.training:
            return self._finish(hidden, scale)
        # Activations are computed again for gradients: they are not kept.
        return checkpoint(self._finish, hidden, scale, use_reentrant=False, preserve_rng_state=False)

    def _finish(self, hidden: Tensor, scale: LayerScale) -> Tensor:
        if not self.gated:
            return scale.after(self.fc2, F.gelu(hidden))
        gate, passed = hidden.chunk(2, dim=-1)
        return scale.after(self.fc2, F.silu(gate) * passed)


class LayerScale(nn.Module):
    """A factor for each channel.

    Args:
        dim: D.
        initial: value of all of them.

    Source: CaiT (arXiv 2103.17239), section 3.1.
    """

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def after(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """What ``linear`` makes of (...,channels), scaled: (...,D).

        While training, weights are scaled, as what they make would be kept for gradients otherwise. In float16 they
        could be too small for it.
        """
        if not self.training or x.dtype == torch.float16:
            return linear(x) * self.gamma
        return F.linear(x, self.gamma[:, None] * linear.weight, self.gamma * linear.bias)


class Block(nn.Module):
    """Attention and a feed-forward network, both pre-norm, scaled and residual.

    Args:
        dim: D.
        num_heads: attention heads; divides D.
        hidden_dim: see ``FeedForward``.
        gated: see ``FeedForward``.
        key_bias: see ``SelfAttention``.
        norm_epsilon: of the norms.
        initial_scale: see ``LayerScale``.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        hidden_dim: int,
        gated: bool,
        key_bias: bool,
        norm_epsilon: float,
        initial_scale: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, norm_epsilon)
        self.attn = SelfAttention(dim, num_heads=num_heads, key_bias=key_bias)
        self.ls1 = LayerScale(dim, initial_scale)
        self.norm2 = nn.LayerNorm(dim, norm_epsilon)
        self.mlp = FeedForward(dim, hidden_dim, gated=gated)
        self.ls2 = LayerScale(dim, initial_scale)

    def forward(self, tokens: Tensor, rotation: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """Refine tokens (B,T,D); the other arguments are those of ``SelfAttention``."""
        tokens = tokens + self.attn(self.norm1(tokens), self.ls1, rotation, allowed)
        return tokens + self.mlp(self.norm2(tokens), self.ls2)


class VisionTransformer(nn.Module):
    """A plain vision transformer, to be stepped through: ``embed``, then each of ``blocks``, then ``norm``.

    Args:
        image_size: (height, width) in pixels that the position table is for.
        patch_size: pixels along a patch's side.
        dim: D.
        depth: blocks.
        num_heads: attention heads; divides D.
        num_registers: tokens besides the class token that stand for no patch.
        gated: SwiGLU instead of GELU.
        rotary: DINOv3: positions turn queries and keys instead of being added, and keys have no bias.
        initial_scale: see ``LayerScale``.
        in_channels: of images.

    Attributes:
        rescale: while training, coordinates of a rotation are scaled by between 1 / this and this, log-uniform, drawn
            anew for each batch.

    Source: ViT (arXiv 2010.11929), section 3.1; registers (arXiv 2309.16588); DINOv2 (arXiv 2304.07193).
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        patch_size: int = 16,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_registers: int = 4,
        gated: bool = False,
        rotary: bool = False,
        initial_scale: float = 1e-5,
        in_channels: int = 3,
    ):
        super().__init__()
        self.rescale = 2.0
        self.patch_size, self._head_dim = patch_size, dim // num_heads
        self.table_size = image_size[0] // patch_size, image_size[1] // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.reg_token = nn.Parameter(torch.zeros(1, num_registers, dim))
        self.pos_embed = None if rotary else nn.Parameter(torch.empty(1, math.prod(self.table_size), dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)})
        # What timm builds for DINOv2 g: two thirds of 4 D, rounded up to a multiple of 8, for each half.
        hidden_dim = 2 * (-(-(8 * dim // 3) // 8) * 8) if gated else 4 * dim
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads=num_heads,
                hidden_dim=hidden_dim,
                gated=gated,
                key_bias=not rotary,
                norm_epsilon=1e-5 if rotary else 1e-6,
                initial_scale=initial_scale,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, 1e-5 if rotary else 1e-6)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def num_prefix_tokens(self) -> int:
        """The class token and the registers."""
        return 1 + self.reg_token.shape[1]

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in images (B,channels,H,W)."""
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Make tokens of images.

        Args:
            images: (B,channels,H,W), normalised; H and W multiples of ``patch_size``.

        Returns:
            (B,T,D) tokens, and the rotation that each block is to be given (None where positions were added).
        """
        patches = self.patch_embed["proj"](images)
        rows, columns = patches.shape[2:]
        patches = patches.flatten(2).mT
        rotation = None
        if self.pos_embed is None:
            scale = 1.0
            if self.training and self.rescale != 1:
                scale = self.rescale ** (2 * torch.rand(()).item() - 1)
            kinds = {"dtype": torch.promote_types(patches.dtype, torch.float32), "device": patches.device}
            rotation = patch_rotation(rows, columns, self._head_dim, scale=scale, **kinds)
        else:
            positions = resample_positions(self.pos_embed, self.table_size, (rows, columns))
            patches = patches + positions.to(patches.dtype)
        prefix = torch.cat([self.cls_token, self.reg_token], dim=1).expand(patches.shape[0], -1, -1)
        return torch.cat([prefix.to(patches.dtype), patches], dim=1), rotation


def resample_positions(table: Tensor, size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """A position table (1,rows*columns,D) for another grid: bicubic with antialiasing, as timm does.

    Products of matrices, and not ``F.interpolate``: of that, runtimes of ONNX know the resampling without antialiasing.

    Args:
        table: row by row.
        size: (rows, columns) that it is for.
        new_size: likewise.
    """
    if not torch.compiler.is_compiling() and tuple(size) == tuple(new_size):  # exported, it is for every size
        return table
    rows, columns = (_bicubic_weights(*lengths, table.device) for lengths in zip(size, new_size))
    maps = table[0].float().unflatten(0, tuple(size))  # (rows,columns,D)
    in_rows = (rows @ maps.flatten(1)).unflatten(1, maps.shape[1:])
    return (columns[None] @ in_rows).flatten(0, 1)[None].to(table.dtype)  # factors of one rank: OpenVINO wants it


def _bicubic_weights(length: int, new_length: int, device: torch.device) -> Tensor:
    """(new_length,length) float32: how much of each old place is in each new one; a row's sum is 1.

    Source: Keys, "Cubic convolution interpolation for digital image processing" (1981), equation 15, with a = -1/2; to
    make a table smaller, the kernel is as much wider.
    """
    scale = torch.full((), length, dtype=torch.float32, device=device) / new_length
    old = torch.arange(length, dtype=torch.float32, device=device) + 0.5
    new = (torch.arange(new_length, dtype=torch.float32, device=device) + 0.5) * scale
    distance = (old - new[:, None]).abs() / scale.clamp(min=1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)
