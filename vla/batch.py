"""What π0 eats: tensors of one batch of observations, with actions when training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Observations in the model's own units. B batch, N cameras, R pixels, T tokens, H horizon.

    images: uint8, or float in [-1, 1], [B, N, 3, R, R]. image_valid: bool [B, N], False = camera
    absent.
    tokens: int64 [B, T]. token_valid: bool [B, T], False = padding.
    state: float32 [B, S], normalised and padded. actions: float32 [B, H, A] likewise, or None.
    action_valid: bool [B, H], False past the episode's end, or None.
    """

    images: Tensor
    image_valid: Tensor
    tokens: Tensor
    token_valid: Tensor
    state: Tensor
    actions: Tensor | None = None
    action_valid: Tensor | None = None

    @property
    def size(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return Batch(**{name: x.to(device, non_blocking=True) for name, x in given.items()})
