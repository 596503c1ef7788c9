"""FLOPs of what runs, a multiply-add counting two."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Work"]


class Work(TorchDispatchMode):
    """Counts the FLOPs of products of matrices and of attention inside the block in `flops`.

    The formulas are torch's. Its own `FlopCounterMode` follows modules too, and for that keeps
    activations alive that would be gone.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _CPU_ATTENTION:
            self.flops += _CPU_ATTENTION[packet](*args)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> int:
    """Of [B, N, T, H] and [B, N, S, H]: two products."""
    return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward(_: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *__: Any) -> int:
    """Four products; the logits, which kernels compute once more, are recomputation."""
    return 2 * _attention(q, k, v)


_CPU_ATTENTION = {  # torch has formulas for the kernels of cards alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
