"""One row times a large bfloat16 matrix on a CPU, at the speed that memory is read with.

Decoding is little else than such products. PyTorch's own go through a kernel for many rows, which
reads a matrix at about half of that speed (see docs/results.md).
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "project"]

SPAN = 2048  # columns that are summed up at a time


class Linear(nn.Linear):
    """`nn.Linear` without a bias that computes with `project`.

    It starts as big_vision's Gemma does: truncated normal with variance 1/fan_in.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # random numbers there make torch import for seconds
            std = 1 / math.sqrt(self.in_features)
            nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, input: Tensor) -> Tensor:
        return project(input, self.weight)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """x: [..., D], weight: [N, D] of the same dtype. Returns x · weightᵀ, [..., N].

    Inside of what `torch.compile` compiles, one row in bfloat16 on a CPU takes the kernel of this
    file, summed in float32. It has no gradient, so it is left alone where one is asked for.
    """
    row = x.numel() == x.shape[-1] and x.dtype == weight.dtype == torch.bfloat16
    on_cpu = x.device.type == "cpu"
    if torch.compiler.is_compiling() and row and on_cpu and not torch.is_grad_enabled():
        return row_product(x, weight)
    return F.linear(x, weight)


@torch.library.custom_op("vla::row_product", mutates_args=())
def row_product(x: Tensor, weight: Tensor) -> Tensor:
    """`project` for one row. A custom operator, so that nothing is fused into its inner loop."""
    from torch._dynamo import mark_dynamic, mark_static  # slow to import

    row, matrix = x.detach().reshape(-1), weight.detach()
    # One kernel for each width, whatever the height: few enough for dynamo to keep all of them.
    mark_static(row, 0)
    mark_static(matrix, 1)
    mark_dynamic(matrix, 0)
    return _compiled()(row, matrix).view(*x.shape[:-1], -1)


@row_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@cache
def _compiled():
    return torch.compile(_sums)


def _sums(x: Tensor, weight: Tensor) -> Tensor:
    """x: [D], weight: [N, D]. Returns [N]."""
    spans = len(x) // SPAN if len(x) % SPAN == 0 else 1
    parts = weight.view(len(weight), spans, -1).float() * x.view(spans, -1).float()
    return parts.sum(-1).sum(-1).to(x.dtype)
