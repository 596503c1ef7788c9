"""What π0 and π0.5 eat: tensors of one batch of observations, with actions when training."""

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
    state: float32 [B, S], normalised and padded; π0.5 doesn't read it, its prompt may tell it.
    actions: float32 [B, H, A], normalised and padded, or None.
    action_valid: bool [B, H], False past the episode's end, or None.
    action_dim_valid: bool [B, A], False for padded dimensions that stay out of the loss; None: all
    count, as in openpi.
    """

    images: Tensor
    image_valid: Tensor
    tokens: Tensor
    token_valid: Tensor
    state: Tensor
    actions: Tensor | None = None
    action_valid: Tensor | None = None
    action_dim_valid: Tensor | None = None

    @property
    def size(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return Batch(**{name: x.to(device, non_blocking=True) for name, x in given.items()})
