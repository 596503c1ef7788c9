"""π0's action expert: a small Gemma that reads the prefix only through its KV cache.

Letters: B batch, H horizon, A action width, S state width, D expert width.
Source: openpi `models/pi0.py` (`embed_suffix`, `compute_loss`), arXiv 2410.24164 appendix B.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.gemma import Gemma, GemmaConfig, at_least_float32
from backbone.kv_cache import KVCache

# Periods of the sine embedding of flow time run geometrically between these (time lies in [0, 1]).
MIN_PERIOD = 4e-3
MAX_PERIOD = 4.0


@dataclass(frozen=True)
class ActionExpertConfig:
    """Sizes. `gemma` must share depth, heads and head size with the backbone's Gemma."""

    gemma: GemmaConfig
    state_dim: int = 32
    action_dim: int = 32
    horizon: int = 50


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sines then cosines of 2π·t/period over geometric periods, float [B, width], of t [B]."""
    fraction = torch.linspace(0, 1, width // 2, dtype=t.dtype, device=t.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = t[:, None] * (2 * math.pi / period)  # in openpi's order: float32 rounds here
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class ActionExpert(nn.Module):
    """Noisy actions, their time, the robot's state and a prefix cache in; a velocity out.

    The suffix is [state, action 1 … action H]. The state opens one block, the actions share the
    next: the state sees the prefix, the actions see prefix, state and one another, and the prefix
    sees none of them, which is why a cache can stand for it exactly.
    """

    def __init__(self, config: ActionExpertConfig):
        super().__init__()
        self.config = config
        width = config.gemma.width
        self.state_proj = nn.Linear(config.state_dim, width)
        self.action_in_proj = nn.Linear(config.action_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.gemma = Gemma(config.gemma)
        self.action_out_proj = nn.Linear(width, config.action_dim)

    def embed_suffix(self, x_t: Tensor, t: Tensor, state: Tensor) -> Tensor:
        """Embed as [B, 1 + H, D]; each action token also carries the flow time."""
        dtype = self.state_proj.weight.dtype
        action = self.action_in_proj(x_t.to(dtype))
        time = time_embedding(t, action.shape[-1]).to(action.dtype)
        both = torch.cat([action, time[:, None].expand_as(action)], dim=-1)
        action = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
        return torch.cat([self.state_proj(state.to(dtype))[:, None], action], dim=1)

    def forward(self, x_t: Tensor, t: Tensor, state: Tensor, cache: KVCache) -> Tensor:
        """Velocity at x_t.

        x_t: float32 [B, H, A]. t: float32 [B] in (0, 1], 1 = noise. state: float32 [B, S],
        normalised.
        cache: the prefix, with as many layers as this expert. Returns float32 [B, H, A].
        """
        x = self.embed_suffix(x_t, t, state)
        block = cache.next_block + (torch.arange(x.shape[1], device=x.device) > 0)
        valid = torch.ones_like(block, dtype=torch.bool)
        hidden, _ = self.gemma(x, block, valid, cache)
        assert hidden is not None
        actions = hidden[:, 1:].to(self.action_out_proj.weight.dtype)
        return at_least_float32(self.action_out_proj(actions))
