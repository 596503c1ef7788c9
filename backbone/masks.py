"""Who may look at whom.

Every token carries a *block id*; a query sees the valid keys whose id is not larger than its own.

    causal          0 1 2 3        prefix-LM   0 0 0 1 2       π0   0 0 0 1 2 2
        1 . . .                        1 1 1 . .                    1 1 1 . . .
        1 1 . .                        1 1 1 . .                    1 1 1 . . .
        1 1 1 .                        1 1 1 . .                    1 1 1 . . .
        1 1 1 1                        1 1 1 1 .                    1 1 1 1 . .
                                       1 1 1 1 1                    1 1 1 1 1 1
                                                                    1 1 1 1 1 1

A row may also hold several texts about its images, which are apart: each sees the images and
itself, and is numbered from where the images end. Images see the first text's prompt, as they see a
lone one's.

    0 0 | 0 1 | 1 2     block
    0 0 | 1 1 | 2 2     text; images are 0
    1 1   1 .   . .
    1 1   1 .   . .
    1 1   1 .   . .
    1 1   1 1   . .
    1 1   . .   1 .
    1 1   . .   1 1

big_vision and openpi write the same rule as a cumulative sum over an "autoregressive" flag per
token: the block id *is* that sum.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def block_mask(query_block: Tensor, key_block: Tensor, key_valid: Tensor) -> Tensor:
    """Return the boolean attention mask, True where a query may attend to a key.

    query_block: int [B, T]. key_block: int [B, S]. key_valid: bool [B, S], False for padding.
    Returns bool [B, 1, T, S], ready to broadcast over heads.

    Padding is hidden as a key only. A padded *query* still sees the valid keys, so that no row of
    the softmax is empty; nobody reads what it computes. (big_vision and openpi also blank such
    rows, with a finite number, and get the same outputs at every valid token.)
    """
    visible = key_block[:, None, :] <= query_block[:, :, None]
    return (visible & key_valid[:, None, :])[:, None]


def apart(text: Tensor) -> Tensor:
    """Return the boolean mask, True where tokens are of one text, or one of them is an image's.

    text: int64 [B, T], 0 on images, else which of the row's texts a token is of, from 1. It is
    meant to be and-ed with `block_mask`, by which images see no text but the first.
    Returns bool [B, 1, T, T].
    """
    query, key = text[:, :, None], text[:, None, :]
    return ((query == key) | (query == 0) | (key == 0))[:, None]


def block_ids(opens_block: Tensor) -> Tensor:
    """Block ids, int64 [..., T], of flags "this token opens a new block", bool or int [..., T]."""
    return opens_block.long().cumsum(-1)


def prefix_lm(images: int, suffix: Tensor, causal: str = "answer") -> Tensor:
    """Block ids, int64 [B, images + T], of image tokens with a prompt and its answer behind them.

    suffix: bool [B, T], True on the answer. causal: as in `backbone.design.Design`, for two image
    tokens, two of the prompt and two of the answer

        "answer"  0 0 0 0 1 2       "text"  0 0 1 2 3 4       "all"  1 2 3 4 5 6
    """
    opens = suffix if causal == "answer" else torch.ones_like(suffix)
    return block_ids(F.pad(opens, (images, 0), value=causal == "all"))


def positions(valid: Tensor, start: Tensor | int = 0) -> Tensor:
    """Number the valid tokens 0, 1, 2, … (int64 [B, T]); padding does not advance the count.

    valid: bool [B, T]. start: position of the first valid token, an int or an int [B, 1] tensor.
    A padded token repeats the number before it (−1 where nothing came before).
    """
    return torch.cumsum(valid.long(), dim=1) - 1 + start


def positions_apart(valid: Tensor, text: Tensor) -> Tensor:
    """`positions` where a row holds several texts: each is numbered as if it were alone behind the
    images.

    valid: bool [B, T]. text: as in `apart`, ascending. Returns int64 [B, T].
    """
    query, key = text[:, :, None], text[:, None, :]
    before = ((query == key) | (key == 0)).tril() & valid[:, None, :]
    return before.sum(-1) - 1
