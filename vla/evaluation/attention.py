"""What the action tokens look at: attention maps, recomputed beside the model's fused attention.

The model never forms its attention probabilities. Here hooks catch what each attention layer of the
expert was given, and q·k and the softmax are done again from that; the model's code and its outputs
stay as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from backbone.attention import spread
from backbone.gemma import Attention, Block, at_least_float32, rotate
from vla.batch import Batch
from vla.model import Model


@dataclass(frozen=True)
class AttentionMaps:
    """Shares of the action tokens' attention to the prefix; each row's shares sum to 1.

    images: float32 [B, N, h, w], one value per patch of each camera. text: float32 [B, T], one per
    prompt token. Attention that stays in the suffix (state, actions) is left out beforehand.
    """

    images: Tensor
    text: Tensor


@torch.no_grad()
def attention_maps(
    model: Model,
    batch: Batch,
    noise: Tensor | None = None,
    steps: int = 10,
    layers: Sequence[int] | None = None,
) -> AttentionMaps:
    """Sample actions for `batch` and return where their tokens looked meanwhile.

    Mean over heads, action tokens, Euler steps and `layers` (all layers of the expert by default).
    noise: float32 [B, H, A], drawn when not given, as in `Pi0.sample_actions`.
    Raises ValueError for a layer that the expert doesn't have.
    """
    blocks = cast(list[Block], model.expert.gemma.blocks)
    chosen = range(len(blocks)) if layers is None else layers
    if not all(0 <= i < len(blocks) for i in chosen):
        raise ValueError(f"expected layers from 0 to {len(blocks) - 1}, got {list(chosen)}")
    horizon = model.config.expert.horizon
    prefix = batch.images.shape[1] * model.config.backbone.image_tokens + batch.tokens.shape[1]
    with _caught([blocks[i].attention for i in chosen], horizon, prefix) as caught:
        model.sample_actions(batch, noise, steps)
    share = torch.stack(caught).mean(0)  # [B, S]
    return _split(share / share.sum(1, keepdim=True), batch)


def attention_weights(attention: Attention, x: Tensor, k: Tensor, mask: Tensor, cos, sin) -> Tensor:
    """The probabilities [B, N, T, S] that `attention` applies when called with these arguments."""
    q = rotate(
        rearrange(attention.q_proj(x), "b t (n h) -> b n t h", h=attention.head_dim), cos, sin
    )
    k = spread(k, q.shape[1])
    scores = at_least_float32(q) @ at_least_float32(k).mT * attention.scale
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)


@contextmanager
def _caught(modules: list[Attention], horizon: int, prefix: int) -> Iterator[list[Tensor]]:
    """Collect, at every call of `modules`, the action tokens' mean attention to the prefix."""
    caught: list[Tensor] = []

    def catch(module: Attention, args: tuple) -> None:
        x, k, _, mask, cos, sin = args
        weights = attention_weights(module, x, k, mask, cos, sin)
        caught.append(weights[:, :, -horizon:, :prefix].mean((1, 2)))  # π0 has its state first

    hooks = [m.register_forward_pre_hook(catch) for m in modules]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


def _split(share: Tensor, batch: Batch) -> AttentionMaps:
    cameras, text = batch.images.shape[1], batch.tokens.shape[1]
    side = round(((share.shape[1] - text) / cameras) ** 0.5)
    images = share[:, : share.shape[1] - text]
    images = rearrange(images, "b (n h w) -> b n h w", n=cameras, h=side)
    return AttentionMaps(images, share[:, share.shape[1] - text :])
