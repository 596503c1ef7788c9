"""Position embeddings of one picture size, for another."""

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def resample_positions(position: Tensor, tokens: int) -> Tensor:
    """float [P, D], one row per patch of a square → [tokens, D] of a finer or coarser square.

    Linear along each side, corners on corners: what big_vision's `resample_posemb` gets from
    `scipy.ndimage.zoom` of order 1. Computed in float32.
    Raises ValueError if either number of patches is no square.
    """
    old, new = math.isqrt(position.shape[0]), math.isqrt(tokens)
    if old**2 != position.shape[0] or new**2 != tokens:
        raise ValueError(f"{position.shape[0]} and {tokens} patches, expected squares of numbers")
    if old == new:
        return position
    grid = rearrange(position.float(), "(h w) d -> 1 d h w", h=old)
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=True)
    return rearrange(grid, "1 d h w -> (h w) d").to(position.dtype)
