"""π0's action expert: a small Gemma that reads the prefix only through its KV cache.

Letters: B batch, H horizon, A action width, S state width, D expert width.
Source: openpi `models/pi0.py` (`embed_suffix`, `compute_loss`), arXiv 2410.24164 appendix B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from action_expert.wide_linear import WideLinear
from backbone.gemma import Gemma, GemmaConfig, at_least_float32
from backbone.kv_cache import KVCache
from backbone.numerics import Numerics

# Periods of the sine embedding of flow time run geometrically between these (time lies in [0, 1]).
MIN_PERIOD = 4e-3
MAX_PERIOD = 4.0

SHARED = ("depth", "heads", "kv_heads", "head_dim")  # by the expert and the backbone's Gemma


@dataclass(frozen=True)
class ActionExpertConfig:
    """Sizes. `gemma` must share depth, heads and head size with the backbone's Gemma.

    state_dim: width of π0's state projection; π0.5 has none and ignores it.
    """

    gemma: GemmaConfig
    state_dim: int = 32
    action_dim: int = 32
    horizon: int = 50

    def reading(self, language: GemmaConfig) -> ActionExpertConfig:
        """These widths, with the depth and the heads that the cache of `language` asks for."""
        shared = {name: getattr(language, name) for name in SHARED}
        return replace(self, gemma=replace(self.gemma, **shared))

    def check_reads(self, language: GemmaConfig) -> None:
        """Raise ValueError if this expert cannot attend to the cache of `language`."""
        for name in SHARED:
            ours, theirs = getattr(self.gemma, name), getattr(language, name)
            if ours != theirs:
                raise ValueError(
                    f"the expert's {name} is {ours} but the backbone's is {theirs}; "
                    "the expert reads the backbone's cache layer by layer, so they must be equal"
                )


def time_embedding(t: Tensor, width: int, float64: bool = False) -> Tensor:
    """Sines then cosines of 2π·t/period over geometric periods, float [B, width], of t [B].

    float64: compute in float64, as PyTorch ports of openpi do, and round to t's dtype at the end;
    else in t's dtype, as JAX does. The two differ by up to 2e-4.
    """
    wide = t.double() if float64 else t
    fraction = torch.linspace(0, 1, width // 2, dtype=wide.dtype, device=t.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = wide[:, None] * (2 * math.pi / period)  # in openpi's order: float32 rounds here
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(t.dtype)


class ActionExpert(nn.Module):
    """Noisy actions, their time, the robot's state and a prefix cache in; a velocity out.

    The suffix is [state, action 1 … action H]. The state opens one block, the actions share the
    next: the state sees the prefix, the actions see prefix, state and one another, and the prefix
    sees none of them, which is why a cache can stand for it exactly.
    """

    def __init__(self, config: ActionExpertConfig, numerics: Numerics | None = None):
        super().__init__()
        self.config = config
        self.numerics = numerics or Numerics()
        width = config.gemma.width
        self.state_proj = WideLinear(config.state_dim, width)
        self.action_in_proj = WideLinear(config.action_dim, width)
        self.action_time_mlp_in = WideLinear(2 * width, width)
        self.action_time_mlp_out = WideLinear(width, width)
        self.gemma = Gemma(config.gemma, self.numerics)
        self.action_out_proj = WideLinear(width, config.action_dim)

    def embed_suffix(self, x_t: Tensor, t: Tensor, state: Tensor) -> Tensor:
        """Embed as float32 [B, 1 + H, D]; each action token also carries the flow time."""
        action = self.action_in_proj(x_t)
        time = time_embedding(t, action.shape[-1], self.numerics.float64_time).to(action.dtype)
        both = torch.cat([action, time[:, None].expand_as(action)], dim=-1)
        action = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
        return torch.cat([self.state_proj(state)[:, None], action], dim=1)

    def forward(self, x_t: Tensor, t: Tensor, state: Tensor, cache: KVCache) -> Tensor:
        """Velocity at x_t.

        x_t: float32 [B, H, A]. t: float32 [B] in (0, 1], 1 = noise. state: float32 [B, S],
        normalised.
        cache: the prefix, with as many layers as this expert. Returns float32 [B, H, A].
        """
        x = self.embed_suffix(x_t, t, state).to(cache.k[0].dtype)
        block = cache.next_block + (torch.arange(x.shape[1], device=x.device) > 0)
        valid = torch.ones_like(block, dtype=torch.bool)
        hidden, _ = self.gemma(x, block, valid, cache)
        assert hidden is not None
        return project_out(self.action_out_proj, hidden[:, 1:])


def project_out(projection: WideLinear, hidden: Tensor) -> Tensor:
    """The velocity, float32 or wider [B, H, A], of hidden states [B, H, D].

    It is rounded where both hidden states and weights are half precision, as in openpi's JAX.
    """
    rounded = torch.promote_types(hidden.dtype, projection.weight.dtype)
    return at_least_float32(projection(hidden).to(rounded))
