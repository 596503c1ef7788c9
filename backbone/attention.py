"""Attention for every transformer here: torch's fused kernel, with a faster way back on a CPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["attention", "spread"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q · kᵀ · scale) · v, the softmax in float32 or wider.

    q: float [B, N, T, H]. k, v: [B, K, S, H]; each of the K heads serves N / K query heads. mask:
    bool, [B, 1, T, S], True where a query may look; a query that sees nothing gets zeros.
    scale: None for H^-0.5. Returns [B, N, T, H].

    Torch's kernel for CPUs takes four times as long for gradients in bfloat16 as for the way forth;
    there they are computed by matrix products instead, up to four times as fast
    (docs/results.md). Not so on fake tensors, which stand for a card's (`vla.planning.rehearsal`).
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        q, k, v = q.to(low), k.to(low), v.to(low)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    on_cpu = q.device.type == "cpu" and not isinstance(q, FakeTensor)
    if learns and on_cpu and q.dtype == torch.bfloat16:
        return _Products.apply(q, k, v, mask, scale)
    return _fused(q, k, v, mask, scale)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    k, v = (spread(x, q.shape[1]) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def spread(x: Tensor, heads: int) -> Tensor:
    """Keys or values [B, K, S, H] for each of the query heads that share them, [B, heads, S, H]; a
    view where K is 1."""
    return x[:, :, None].expand(-1, -1, heads // x.shape[1], -1, -1).flatten(1, 2)


class _Products(torch.autograd.Function):
    """`_fused`, whose gradients are computed from the inputs and the output alone, as
    FlashAttention does (arXiv 2205.14135, appendix B.4), but with whole matrices.

    Query heads that share a key lie one below the other there, as rows of one product.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        out = _fused(q, k, v, mask, scale)
        ctx.save_for_backward(q, k, v, mask, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out = ctx.saved_tensors
        heads = (k.shape[1], q.shape[1] // k.shape[1])
        q, out, given = (x.unflatten(1, heads).flatten(2, 3) for x in (q, out, *gradients))
        scores = (q * ctx.scale) @ k.mT
        if mask is not None:
            blind = ~mask.any(-1, keepdim=True)
            scores.masked_fill_(~mask.repeat(1, 1, heads[1], 1), torch.finfo(scores.dtype).min)
            given = given.masked_fill(blind.repeat(1, 1, heads[1], 1), 0)
        shares = scores.softmax(-1)
        grad_v = shares.mT @ given
        mean = (given.float() * out.float()).sum(-1, keepdim=True).to(given.dtype)
        grad_scores = (given @ v.mT).sub_(mean).mul_(shares)
        grad_q = (grad_scores @ k) * ctx.scale
        grad_k = (grad_scores.mT @ q) * ctx.scale
        grad_q = grad_q.unflatten(2, (heads[1], -1)).flatten(1, 2)
        return grad_q, grad_k, grad_v, None, None
