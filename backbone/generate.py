"""Turn a prefilled prompt into text."""

import torch
from torch import Tensor

from backbone.paligemma import PaliGemma


@torch.no_grad()
def greedy(
    model: PaliGemma,
    images: Tensor,
    image_valid: Tensor,
    tokens: Tensor,
    token_valid: Tensor,
    max_new_tokens: int,
    eos: int | None = 1,
    pad: int = 0,
) -> Tensor:
    """Answer each prompt with its most likely token, one after the other.

    Inputs as for `PaliGemma.prefill`; prompts may be padded on either side.
    Returns int64 [B, ≤ max_new_tokens]; a row that said EOS goes on with `pad`, and generation ends
    when all rows have. With `eos=None` every row gets `max_new_tokens` tokens.
    """
    hidden, cache = model.prefill(images, image_valid, tokens, token_valid)
    assert hidden is not None
    index = torch.arange(token_valid.shape[1], device=tokens.device)
    last = (index * token_valid).amax(1) - token_valid.shape[1]  # counted from the row's end
    rows = torch.arange(tokens.shape[0], device=tokens.device)
    logits = model.embedding.logits(hidden[rows, last])
    finished = torch.zeros_like(rows, dtype=torch.bool)
    answer = []
    for step in range(max_new_tokens):
        token = logits.argmax(-1).masked_fill(finished, pad)
        answer.append(token)
        if eos is not None:
            finished = finished | (token == eos)
            if finished.all():
                break
        if step + 1 < max_new_tokens:
            logits, cache = model.decode(token[:, None], cache)
            logits = logits[:, -1]
    return torch.stack(answer, dim=1)
