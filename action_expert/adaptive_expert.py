"""π0.5's action expert: flow time steers every norm, and the state is none of its business.

Letters: B batch, H horizon, A action width, D expert width.
Source: openpi `models/pi0.py` with `pi05=True`; arXiv 2504.16054.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from action_expert.adaptive import AdaptiveGemma
from action_expert.expert import ActionExpertConfig, project_out, time_embedding
from action_expert.wide_linear import WideLinear
from backbone.kv_cache import KVCache
from backbone.numerics import Numerics


class AdaptiveExpert(nn.Module):
    """Noisy actions, their time and a prefix cache in; a velocity out.

    The suffix is [action 1 … action H], one block: each action sees the prefix and all actions.
    What the robot's state has to say stands in the prompt.
    """

    def __init__(self, config: ActionExpertConfig, numerics: Numerics | None = None):
        super().__init__()
        self.config = config
        self.numerics = numerics or Numerics()
        width = config.gemma.width
        self.action_in_proj = WideLinear(config.action_dim, width)
        self.time_mlp_in = WideLinear(width, width)
        self.time_mlp_out = WideLinear(width, width)
        self.gemma = AdaptiveGemma(config.gemma, self.numerics)
        self.action_out_proj = WideLinear(width, config.action_dim)

    def embed_suffix(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens float32 [B, H, D], the condition on flow time float32 [B, D])."""
        time = time_embedding(t, self.config.gemma.width, self.numerics.float64_time)
        condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time))))
        return self.action_in_proj(x_t), condition

    def forward(self, x_t: Tensor, t: Tensor, cache: KVCache) -> Tensor:
        """Velocity at x_t.

        x_t: float32 [B, H, A]. t: float32 [B] in (0, 1], 1 = noise. cache: the prefix, with as many
        layers as this expert. Returns float32 [B, H, A].
        """
        x, condition = self.embed_suffix(x_t, t)
        block = cache.next_block.expand(-1, x.shape[1])
        valid = torch.ones_like(block, dtype=torch.bool)
        hidden = self.gemma(x.to(cache.k[0].dtype), condition, block, valid, cache)
        return project_out(self.action_out_proj, hidden)
