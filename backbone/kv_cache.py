"""The one value that crosses from the backbone to the action expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def join(past: Tensor, new: Tensor, slots: Tensor | None, dim: int) -> Tensor:
    """`new` after `past` along `dim`; or, with `slots` int64 [T], written into `past` there."""
    if slots is None:
        return torch.cat([past, new], dim=dim)
    return past.index_copy_(dim, slots, new.to(past.dtype))


@dataclass(frozen=True)
class KVCache:
    """Rotated keys and values of tokens that were read, and what a later query needs to see them.

    Letters: L layers, B batch, K key/value heads, S tokens, H head size.

    k, v: L tensors each, float [B, K, S, H]; the keys carry their rotary positions already.
    block: int64 [B, S], block id of each token (see `backbone.masks`).
    valid: bool [B, S], False for padding and for absent cameras.

    A cache is never changed in place: `append`, `detach` and `repeat` return new ones. The one
    that a `KVRoom` holds is the exception.
    """

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    block: Tensor
    valid: Tensor

    @property
    def length(self) -> Tensor:
        """Valid tokens per row, int64 [B, 1]: also the position of the token that comes next."""
        return self.valid.sum(1, keepdim=True)

    @property
    def next_block(self) -> Tensor:
        """First block id that no cached token has, int64 [B, 1]."""
        return self.block.amax(1, keepdim=True) + 1

    def append(self, new: KVCache) -> KVCache:
        """Return this cache followed by `new` (same batch, layers and heads)."""
        return KVCache(
            k=tuple(join(*pair, None, 2) for pair in zip(self.k, new.k, strict=True)),
            v=tuple(join(*pair, None, 2) for pair in zip(self.v, new.v, strict=True)),
            block=join(self.block, new.block, None, 1),
            valid=join(self.valid, new.valid, None, 1),
        )

    def detach(self) -> KVCache:
        """Return the same values without their gradient ("knowledge insulation")."""
        k, v = tuple(x.detach() for x in self.k), tuple(x.detach() for x in self.v)
        return KVCache(k, v, self.block, self.valid)

    def repeat(self, draws: int) -> KVCache:
        """Return a cache of batch B·draws in which every row stands `draws` times in a row."""
        if draws == 1:
            return self

        def spread(x: Tensor) -> Tensor:
            return x[:, None].expand(-1, draws, *x.shape[1:]).flatten(0, 1)

        k, v = tuple(map(spread, self.k)), tuple(map(spread, self.v))
        return KVCache(k, v, spread(self.block), spread(self.valid))
