"""A linear layer that never computes in half precision."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.paligemma import ZeroLinear


class WideLinear(nn.Linear):
    """x · weightᵀ + bias in float32, or wider if x or the weights are, under autocast too.

    openpi runs the action expert's own projections like this, whatever their weights are stored in:
    actions, flow time and state enter as float32 and stay so up to the first block.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input: float [..., in_features]. Returns float32 or wider [..., out_features]."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        dtype = torch.promote_types(dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)


class ZeroWideLinear(ZeroLinear, WideLinear):
    """Starts as zeros."""
