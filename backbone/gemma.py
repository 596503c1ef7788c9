"""Gemma 1: the decoder used at two sizes, as the language model and as the action expert.

Letters: B batch, T new tokens, S keys, N query heads, K key/value heads, H head size, D width.
Numerics follow the JAX reference (big_vision `models/ppp/gemma.py`, openpi `models/gemma.py`):
norms, rotary embedding and softmax in float32 whatever the weights are.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbone.kv_cache import KVCache
from backbone.masks import block_mask, positions

ROPE_BASE = 10_000.0
NORM_EPS = 1e-6


@dataclass(frozen=True)
class GemmaConfig:
    """Sizes of a Gemma stack. `heads` must be a multiple of `kv_heads`; `head_dim` must be even."""

    width: int
    depth: int
    mlp: int
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 256

    def __post_init__(self):
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"Gemma needs heads ({self.heads}) to be a multiple of kv_heads ({self.kv_heads}) "
                f"and an even head_dim ({self.head_dim})"
            )


GEMMA_2B = GemmaConfig(width=2048, depth=18, mlp=16_384)
GEMMA_300M = GemmaConfig(width=1024, depth=18, mlp=4096)


def at_least_float32(x: Tensor) -> Tensor:
    """Raise half precisions to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rope_angles(position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Rotary angles [B, 1, T, H/2] of int positions [B, T]: position · 10000^(−2j/H)."""
    j = torch.arange(head_dim // 2, device=position.device, dtype=dtype)
    frequency = ROPE_BASE ** (-2 * j / head_dim)
    return position[:, None, :, None].to(dtype) * frequency


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (j, j + H/2) of x [B, heads, T, H], in the precision of cos and sin."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) · (1 + weight) in float32, cast back at the end. The weight starts at 0."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        scale = 1 + self.weight.to(wide.dtype)
        return F.rms_norm(wide, scale.shape, scale, NORM_EPS).to(x.dtype)


class Attention(nn.Module):
    """Multi-query or grouped-query attention with rotary positions, fused softmax, no biases."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.heads // config.kv_heads
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of the new tokens, each [B, K, T, H]."""
        k = rotate(self._heads(self.k_proj(x)), cos, sin)
        return k, self._heads(self.v_proj(x))

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor, cos: Tensor, sin: Tensor):
        """Attend from x [B, T, D] to k, v [B, K, S, H] under mask [B, 1, T, S]: [B, T, D]."""
        q = rotate(self._heads(self.q_proj(x)), cos, sin)
        k, v = self._share(k), self._share(v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(rearrange(out, "b n t h -> b t (n h)"))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (n h) -> b n t h", h=self.head_dim)

    def _share(self, x: Tensor) -> Tensor:
        """Let every query head of a group see its key/value head (a view where there is one)."""
        return x[:, :, None].expand(-1, -1, self.groups, -1, -1).flatten(1, 2)


class MLP(nn.Module):
    """GeGLU: down(gelu_tanh(gate(x)) · up(x)), no biases."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm block. An ordinary module, so FSDP2 and compile can take it alone."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = MLP(config)

    def forward(
        self, x, mask, cos, sin, past: tuple[Tensor, Tensor] | None, keys_only: bool = False
    ):
        """Return (x after the block [B, T, D], (k, v) of the new tokens).

        past: keys and values of earlier tokens, or None. mask: bool [B, 1, T, S] over past and new.
        keys_only: stop after keys and values and return x as it came.
        """
        h = self.attention_norm(x)
        new = self.attention.keys_values(h, cos, sin)
        if keys_only:
            return x, new
        k, v = new if past is None else (torch.cat(p, dim=2) for p in zip(past, new, strict=True))
        x = x + self.attention(h, k, v, mask, cos, sin)
        return x + self.mlp(self.mlp_norm(x)), new


class Gemma(nn.Module):
    """The stack: embeddings in, hidden states and the new tokens' own cache out."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.apply(_initialise)

    def forward(
        self,
        x: Tensor,
        block: Tensor,
        valid: Tensor,
        cache: KVCache | None = None,
        cache_only: bool = False,
    ) -> tuple[Tensor | None, KVCache]:
        """Read new tokens after those in `cache`.

        x: float [B, T, D] embeddings. block: int64 [B, T], not smaller than the cache's ids of
        tokens that must be seen. valid: bool [B, T]. cache: earlier tokens, or None.
        cache_only: only keys and values are wanted, so the last block's query, output and MLP and
        the final norm are dead work and are skipped (5.5 % of π0's prefix); hidden states are then
        None.

        Returns (hidden states after the final norm, float [B, T, D]; the *new* tokens' cache).
        """
        mask, cos, sin = self.geometry(x, block, valid, cache)
        keys, values = [], []
        last = len(self.blocks) - 1
        for i, layer in enumerate(self.blocks):
            past = None if cache is None else (cache.k[i], cache.v[i])
            x, (k, v) = layer(x, mask, cos, sin, past, keys_only=cache_only and i == last)
            keys.append(k)
            values.append(v)
        new = KVCache(tuple(keys), tuple(values), block, valid)
        return (None if cache_only else self.norm(x)), new

    def geometry(
        self, x: Tensor, block: Tensor, valid: Tensor, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What every block shares: the mask, bool [B, 1, T, S], over cached and new tokens, and the
        cosines and sines of the new tokens' rotary angles, float32 or wider [B, 1, T, H/2]."""
        start = 0 if cache is None else cache.length
        key_block, key_valid = block, valid
        if cache is not None:
            key_block = torch.cat([cache.block, block], dim=1)
            key_valid = torch.cat([cache.valid, valid], dim=1)
        mask = block_mask(block, key_block, key_valid)
        wide = torch.promote_types(x.dtype, torch.float32)
        angles = rope_angles(positions(valid, start), self.config.head_dim, wide)
        return mask, angles.cos(), angles.sin()


class TextEmbedding(nn.Module):
    """Token table, tied to the output: rows · √D on the way in, dot products on the way out."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab, width) / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, T]. Returns float [B, T, D], scaled by √D (images are never scaled)."""
        return F.embedding(tokens, self.weight) * math.sqrt(self.weight.shape[1])

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: float [..., D]. Returns float [..., vocab], without bias or soft-cap."""
        return F.linear(hidden, self.weight)


def _initialise(module: nn.Module):
    """Truncated normal with variance 1/fan_in on every matrix, as big_vision's Gemma starts."""
    if isinstance(module, nn.Linear):
        std = 1 / math.sqrt(module.in_features)
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
