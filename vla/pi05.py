"""π0.5: π0 whose expert takes flow time through its norms and leaves the state to the prompt.

Source: arXiv 2504.16054; openpi `models/pi0.py` with `pi05=True`. As in π0, the prefix never
attends to the suffix, so one reading of it serves every velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from action_expert.adaptive_expert import AdaptiveExpert
from action_expert.expert import ActionExpertConfig
from action_expert.flow import integrate
from backbone.kv_cache import KVCache
from backbone.paligemma import PaliGemma, PaliGemmaConfig, TextBatch
from vla.batch import Batch
from vla.objective import draw, loss, starting_noise
from vla.pi0 import PI0, PI0_SMALL, PI0_TINY, Pi0


@dataclass(frozen=True)
class Pi05Config:
    """A backbone and an expert that can read its cache: same depth, heads and head size."""

    backbone: PaliGemmaConfig
    expert: ActionExpertConfig

    def __post_init__(self):
        self.expert.check_reads(self.backbone.language)


PI05 = Pi05Config(PI0.backbone, PI0.expert)
PI05_SMALL = Pi05Config(PI0_SMALL.backbone, PI0_SMALL.expert)
PI05_TINY = Pi05Config(PI0_TINY.backbone, PI0_TINY.expert)


class Pi05(nn.Module):
    """`forward` gives the loss of a batch, `sample_actions` a chunk for each of its
    observations.

    insulated: as in `Pi0`.
    """

    insulated = False

    def __init__(self, config: Pi05Config):
        super().__init__()
        self.config = config
        self.backbone = PaliGemma(config.backbone)
        self.expert = AdaptiveExpert(config.expert, config.backbone.numerics)

    unreached = Pi0.unreached  # the same here

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
        """Flow-matching loss, a scalar; arguments and errors as in `Pi0.forward`."""
        if isinstance(batch, TextBatch):
            return self.backbone(batch)
        draws = draw(batch, noise, t)
        cache = self.prefill(batch).repeat(draws.count)
        if self.insulated:
            cache = cache.detach()
        return loss(self.expert(draws.x_t, draws.t, cache), draws, batch)

    @torch.no_grad()
    def sample_actions(self, batch: Batch, noise: Tensor | None = None, steps: int = 10) -> Tensor:
        """Integrate noise into actions; arguments and result as in `Pi0.sample_actions`."""
        if noise is None:
            noise = starting_noise(batch, self.config.expert)
        cache = self.prefill(batch)
        return integrate(lambda x, t: self.expert(x, t, cache), noise, steps)
