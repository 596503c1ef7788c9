"""Exponential moving average of the trained weights, in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vla.training.optimiser import trained_parameters

__all__ = ["Ema", "ema_decay"]


def ema_decay(step: int, decay: float, ramp: bool) -> float:
    """Decay used after update `step` (from 0); with `ramp`, at most (1 + step) / (10 + step).

    The ramp lets short runs forget their random start; openpi has none.
    """
    return min(decay, (1 + step) / (10 + step)) if ramp else decay


class Ema:
    """Shadow of a model's trained parameters: shadow ← d · shadow + (1 − d) · weight.

    `shadow`: float32 tensors by parameter name, where the parameters are. Frozen ones have none.
    """

    def __init__(self, model: nn.Module, decay: float, *, ramp: bool = False):
        self.decay, self.ramp = decay, ramp
        self._weights = trained_parameters(model)
        self.shadow: dict[str, Tensor] = {
            name: p.detach().float().clone() for name, p in self._weights.items()
        }

    @torch.no_grad()
    def update(self, step: int, shut: Tensor | None = None) -> None:
        """Move the shadow towards the weights after update `step` (from 0), unless the scalar
        `shut` is 1: then that update wasn't made."""
        weight = 1 - ema_decay(step, self.decay, self.ramp)
        share = weight if shut is None else weight * (1 - shut)
        for name, shadow in self.shadow.items():
            shadow.lerp_(self._weights[name].float(), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model holds the average; afterwards its own weights, bit for bit."""
        own = {name: p.detach().clone() for name, p in self._weights.items()}
        self._assign(self.shadow)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._weights.items():
            parameter.copy_(values[name])
