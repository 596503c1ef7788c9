"""A cache with room for tokens to come: what decoding writes into, in place and without gradients.

    slots   [prompt ……………………][answer so far ……][free ……]
    valid    1 1 1 0 1 1 1 1   1 1 1 1           0 0 0

Shapes stay the same from the first token to the last, and no step copies what earlier ones wrote.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.kv_cache import KVCache


class KVRoom:
    """`cache` is as long as everything that will ever be in it; free slots are not valid."""

    def __init__(self, prompt: KVCache, room: int):
        """Copies `prompt` and adds `room` free slots behind it."""
        self.cache = KVCache(
            k=tuple(F.pad(k, (0, 0, 0, room)) for k in prompt.k),
            v=tuple(F.pad(v, (0, 0, 0, room)) for v in prompt.v),
            block=F.pad(prompt.block, (0, room)),
            valid=F.pad(prompt.valid, (0, room)),
        )
        self.start = self.taken = prompt.valid.shape[1]
        self.size = self.start + room

    def take(self, count: int) -> Tensor:
        """The next `count` slots, int64 [count] on the cache's device; they are free no more."""
        assert self.taken + count <= self.size, f"{self.size} slots are taken, {count} more wanted"
        self.taken += count
        return torch.arange(self.taken - count, self.taken, device=self.cache.valid.device)

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on from the answer of row rows[i], int64 [B], which must share its prompt."""
        answer = slice(self.start, self.taken)
        for x in (*self.cache.k, *self.cache.v):
            x[:, :, answer] = x[rows, :, answer]
        for x in (self.cache.block, self.cache.valid):
            x[:, answer] = x[rows, answer]
