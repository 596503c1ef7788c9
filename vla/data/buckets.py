"""Text of few lengths, so that few shapes come up: what compiled blocks and CUDA graphs want."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F

from backbone.paligemma import TextBatch
from vla.batch import Batch

__all__ = ["bucketed"]

TEXT = ("tokens", "token_valid", "suffix", "counted", "text")  # fields of [B, T]


def bucketed[T: (Batch, TextBatch)](batch: T, bucket: int | None) -> T:
    """`batch` with the text columns that its longest row takes, rounded up to a multiple of
    `bucket`; the loss is the same. None: as it is.

    Padding stands on the right; columns that come anew hold token 0 and are not valid.
    """
    if bucket is None:
        return batch
    used = batch.token_valid.any(dim=0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else 1
    wanted = -(-longest // bucket) * bucket
    fields = {name: getattr(batch, name, None) for name in TEXT}
    more = wanted - batch.tokens.shape[1]
    return replace(batch, **{n: F.pad(x, (0, more)) for n, x in fields.items() if x is not None})
