"""SigLIP's vision transformer, without the pooling head (PaliGemma reads every patch)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbone.attention import attention


@dataclass(frozen=True)
class SigLIPConfig:
    """Sizes of the encoder. `resolution` (pixels, square) must be a multiple of `patch`.

    `depth` 0 means no encoder: `RawPatches`, whose width is 3 · patch².
    """

    width: int
    depth: int
    mlp: int
    heads: int
    patch: int = 14
    resolution: int = 224

    def __post_init__(self):
        if self.depth == 0 and self.width != 3 * self.patch**2:
            raise ValueError(
                f"vision.depth is 0, no encoder: its width is that of a patch's pixels, "
                f"{3 * self.patch**2}, not {self.width}; take raw_patches({self.patch}, …)"
            )
        if self.resolution % self.patch or self.width % self.heads:
            raise ValueError(
                f"SigLIP needs resolution ({self.resolution}) to be a multiple of patch "
                f"({self.patch}) and width ({self.width}) a multiple of heads ({self.heads})"
            )

    @property
    def tokens(self) -> int:
        """Patches per image."""
        return (self.resolution // self.patch) ** 2


def raw_patches(patch: int, resolution: int) -> SigLIPConfig:
    """No encoder: the connector reads pixels, as in Fuyu and PaliGemma's ablation of it."""
    return SigLIPConfig(3 * patch**2, depth=0, mlp=0, heads=1, patch=patch, resolution=resolution)


class RawPatches(nn.Module):
    """The pixels of every patch as its feature; nothing is learned here."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.config = config

    def forward(self, images: Tensor) -> Tensor:
        """images: float [B, 3, R, R] in [-1, 1]. Returns float [B, patches, 3 · patch²], rows of
        patches first."""
        p = self.config.patch
        return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)


class Linear(nn.Linear):
    """Starts as big_vision's ViT does: a Xavier-uniform matrix and a zero bias."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)
        if not self.weight.is_meta:
            nn.init.xavier_uniform_(self.weight)


class PatchEmbedding(nn.Module):
    """Cut an image into patches, project each, add its learned position."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.patch = config.patch
        self.weight = nn.Parameter(torch.empty(config.width, 3, config.patch, config.patch))
        self.bias = nn.Parameter(torch.empty(config.width))
        self.position = nn.Parameter(torch.empty(config.tokens, config.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)
        if not self.weight.is_meta:  # random numbers there make torch import for seconds
            nn.init.normal_(self.weight, std=1 / math.sqrt(self.weight[0].numel()))
            nn.init.normal_(self.position, std=1 / math.sqrt(self.position.shape[1]))

    def forward(self, images: Tensor) -> Tensor:
        """images: float [B, 3, R, R]. Returns float32 or wider [B, patches, width], rows of patches
        first, whatever the weights are: every implementation starts so."""
        patches = rearrange(
            images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch
        )
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight, bias = self.weight.flatten(1).to(dtype), self.bias.to(dtype)
        return F.linear(patches.to(dtype), weight, bias) + self.position


class Block(nn.Module):
    """Pre-norm block with biases everywhere, full attention, tanh-GELU."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.fc1 = Linear(config.width, config.mlp)
        self.fc2 = Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, P, D] → the same shape."""
        h = self.attention_norm(x)
        q, k, v = (
            rearrange(proj(h), "b p (n h) -> b n p h", n=self.heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attention(q, k, v)
        x = x + self.out_proj(rearrange(out, "b n p h -> b p (n h)"))
        return x + self.fc2(F.gelu(self.fc1(self.mlp_norm(x)), approximate="tanh"))


class SigLIP(nn.Module):
    """Image → one feature per patch, after the final LayerNorm."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.config = config
        self.embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [B, 3, R, R] in [-1, 1]. Returns float [B, patches, width]."""
        x = self.embedding(images).to(self.norm.weight.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
