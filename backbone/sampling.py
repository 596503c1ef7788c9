"""Drawing one token from logits: float32 [B, vocab] → int64 [B].

Logits of −inf are never drawn, except where a whole row holds nothing else.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Choose = Callable[[Tensor], Tensor]


def most_likely(logits: Tensor) -> Tensor:
    """Greedy: the highest logit of each row, the first of equals."""
    return logits.argmax(-1)


def sampler(
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Choose:
    """Draw from softmax(logits / temperature), cut to the top k and then to the nucleus p.

    generator: on the logits' device; torch's global one where None.
    """

    def choose(logits: Tensor) -> Tensor:
        logits = logits / temperature
        if top_k is not None:
            logits = keep_top_k(logits, top_k)
        if top_p is not None:
            logits = keep_nucleus(logits, top_p)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]

    return choose


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """−inf for all but each row's k highest logits; equals of the k-th stay."""
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_nucleus(logits: Tensor, p: float) -> Tensor:
    """−inf for all but the most likely tokens that reach probability p together.

    big_vision's rule (`predict_fns.py`): what is at least as high as the first logit, from the
    highest down, at which the cumulative probability is at least p.
    """
    ordered = logits.sort(dim=-1, descending=True).values
    reached = ordered.softmax(-1).cumsum(-1) < p
    first = reached.sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(logits < ordered.gather(-1, first), -torch.inf)
