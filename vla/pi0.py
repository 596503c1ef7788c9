"""π0: PaliGemma reads the observation, the action expert turns noise into an action chunk.

In π0 the prefix (images, prompt) never attends to the suffix (state, noisy actions). So reading it
once and letting the expert attend to its keys and values is *exactly* the joint pass of the paper,
in training too; `tests/action_expert` holds the joint form that this is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from action_expert.expert import ActionExpert, ActionExpertConfig
from action_expert.flow import integrate
from backbone.gemma import GEMMA_300M, GemmaConfig
from backbone.kv_cache import KVCache
from backbone.paligemma import (
    PALIGEMMA_3B_224,
    PALIGEMMA_SMALL,
    PALIGEMMA_TINY,
    PaliGemma,
    PaliGemmaConfig,
    TextBatch,
)
from vla.batch import Batch
from vla.objective import draw, loss, starting_noise


@dataclass(frozen=True)
class Pi0Config:
    """A backbone and an expert that can read its cache: same depth, heads and head size."""

    backbone: PaliGemmaConfig
    expert: ActionExpertConfig

    def __post_init__(self):
        self.expert.check_reads(self.backbone.language)


PI0 = Pi0Config(PALIGEMMA_3B_224, ActionExpertConfig(GEMMA_300M))
PI0_SMALL = Pi0Config(
    PALIGEMMA_SMALL,
    ActionExpertConfig(
        GemmaConfig(width=96, depth=4, mlp=192, heads=4, head_dim=32),
        state_dim=4,
        action_dim=4,
        horizon=10,
    ),
)
PI0_TINY = Pi0Config(
    PALIGEMMA_TINY,
    ActionExpertConfig(
        GemmaConfig(width=32, depth=2, mlp=64, heads=2, head_dim=16),
        state_dim=4,
        action_dim=4,
        horizon=4,
    ),
)


class Pi0(nn.Module):
    """`forward` gives the loss of a batch, `sample_actions` a chunk for each of its
    observations.

    insulated: the action loss doesn't change the backbone ("knowledge insulation", arXiv
    2505.23705); False unless it is set.
    """

    insulated = False

    def __init__(self, config: Pi0Config):
        super().__init__()
        self.config = config
        self.backbone = PaliGemma(config.backbone)
        self.expert = ActionExpert(config.expert, config.backbone.numerics)

    @property
    def unreached(self) -> tuple[str, ...]:
        """The modules that the loss of actions doesn't reach, by name: what the backbone computes
        beyond its cache, or all of it where it is insulated."""
        if self.insulated:
            return ("backbone",)
        return tuple(f"backbone.language.{name}" for name in self.backbone.language.beyond_cache)

    def prefill(self, batch: Batch) -> KVCache:
        """Read images and prompt; return what the expert attends to."""
        _, cache = self.backbone.prefill(
            batch.images, batch.image_valid, batch.tokens, batch.token_valid, cache_only=True
        )
        return cache

    def forward(
        self,
        batch: Batch | TextBatch,
        noise: Tensor | None = None,
        t: Tensor | None = None,
    ) -> Tensor:
        """Flow-matching loss, a scalar; of a `TextBatch`, the backbone's text loss.

        noise: float32 [B, K, H, A] and t: float32 [B, K], K draws per observation that share one
        reading of the prefix; drawn here, with K = 1, when not given.
        Raises ValueError if the batch has no actions.
        """
        if isinstance(batch, TextBatch):
            return self.backbone(batch)
        draws = draw(batch, noise, t)
        cache = self.prefill(batch).repeat(draws.count)
        if self.insulated:
            cache = cache.detach()
        state = batch.state.repeat_interleave(draws.count, dim=0)
        return loss(self.expert(draws.x_t, draws.t, state, cache), draws, batch)

    @torch.no_grad()
    def sample_actions(self, batch: Batch, noise: Tensor | None = None, steps: int = 10) -> Tensor:
        """Integrate noise into actions.

        noise: float32 [B, H, A], drawn here when not given. steps: Euler steps, 10 as in openpi.
        Returns float32 [B, H, A], normalised and padded as in training.
        """
        if noise is None:
            noise = starting_noise(batch, self.config.expert)
        cache = self.prefill(batch)
        return integrate(lambda x, t: self.expert(x, t, batch.state, cache), noise, steps)
