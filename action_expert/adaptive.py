"""A Gemma whose norms follow a condition: the transformer of π0.5's action expert.

Letters: B batch, T new tokens, D width.
Source: openpi `models/gemma.py` (`RMSNorm` with `cond`, `_gated_residual`); the idea is adaptive
LayerNorm of DiT (arXiv 2212.09748), here with RMSNorm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from action_expert.wide_linear import ZeroWideLinear
from backbone.gemma import (
    MLP,
    NORM_EPS,
    Attention,
    Gemma,
    GemmaConfig,
    at_least_float32,
)
from backbone.kv_cache import KVCache
from backbone.numerics import Numerics
from backbone.paligemma import ZeroLinear


class AdaptiveRMSNorm(nn.Module):
    """x / rms(x) · (1 + scale) + shift in float32, cast back at the end, and a gate.

    Scale, shift and gate are linear in the condition and start at 0, so that a block with this norm
    starts as the identity.
    """

    def __init__(self, width: int, numerics: Numerics):
        super().__init__()
        self.wide = numerics.float32_modulation
        self.modulation = (ZeroWideLinear if self.wide else ZeroLinear)(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x: float [B, T, D]. condition: float32 [B, D].

        Returns (normed [B, T, D], gate [B, 1, D] for what the block adds), both of x's dtype.
        """
        modulation = self.modulation(condition if self.wide else condition.to(x.dtype))
        scale, shift, gate = modulation[:, None].chunk(3, dim=-1)
        normed = F.rms_norm(at_least_float32(x), x.shape[-1:], eps=NORM_EPS)
        return (normed * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


class AdaptiveBlock(nn.Module):
    """One pre-norm block with gated residuals. An ordinary module, as `backbone.gemma.Block` is."""

    def __init__(self, config: GemmaConfig, numerics: Numerics):
        super().__init__()
        self.attention_norm = AdaptiveRMSNorm(config.width, numerics)
        self.attention = Attention(config)
        self.mlp_norm = AdaptiveRMSNorm(config.width, numerics)
        self.mlp = MLP(config)

    def forward(self, x, condition, mask, cos, sin, past: tuple[Tensor, Tensor]) -> Tensor:
        """x after the block, [B, T, D].

        past: keys and values of earlier tokens. mask: bool [B, 1, T, S] over past and new.
        """
        h, gate = self.attention_norm(x, condition)
        new = self.attention.keys_values(h, cos, sin)
        k, v = (torch.cat(pair, dim=2) for pair in zip(past, new, strict=True))
        x = x + self.attention(h, k, v, mask, cos, sin) * gate
        h, gate = self.mlp_norm(x, condition)
        return x + self.mlp(h) * gate


class AdaptiveGemma(nn.Module):
    """The stack: embeddings and a condition in, hidden states out; it always reads a cache."""

    def __init__(self, config: GemmaConfig, numerics: Numerics):
        super().__init__()
        self.config, self.numerics = config, numerics
        self.blocks = nn.ModuleList(AdaptiveBlock(config, numerics) for _ in range(config.depth))
        self.norm = AdaptiveRMSNorm(config.width, numerics)

    geometry = Gemma.geometry  # mask and rotary angles are the same here

    def forward(
        self, x: Tensor, condition: Tensor, block: Tensor, valid: Tensor, cache: KVCache
    ) -> Tensor:
        """Hidden states after the final norm, float [B, T, D].

        x: float [B, T, D] embeddings. condition: float32 [B, D]. block: int64 [B, T]. valid: bool
        [B, T]. cache: earlier tokens.
        """
        masks, cos, sin = self.geometry(x, block, valid, cache)
        for i, layer in enumerate(self.blocks):
            x = layer(x, condition, masks[i % 2], cos, sin, (cache.k[i], cache.v[i]))
        x, _ = self.norm(x, condition)
        return x
