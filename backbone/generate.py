"""Turn a prefilled prompt into text, one token after the other.

    prefill ─→ logits ─ choose ─→ token ─ step ─→ logits ─ choose ─→ …

A prompt is a `TextBatch` whose `suffix` marks the part of the answer that is given already (none of
it, as a rule); prompts may be padded on either side. Letters: B batch, T generated tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backbone.gemma import at_least_float32
from backbone.kv_room import KVRoom
from backbone.paligemma import PaliGemma, TextBatch
from backbone.restriction import Allowed, Restriction
from backbone.sampling import Choose, most_likely
from backbone.tokenizer import Tokenizer

EOS, PAD = Tokenizer.eos, Tokenizer.pad

# How many steps an accelerator runs between two looks at whether all rows have finished: each look
# waits for everything that was queued.
CHECK_EVERY = 8


@dataclass(frozen=True)
class Step:
    """One more token per row.

    tokens: int64 [B], `pad` after EOS. log_probs: float32 [B], 0 after EOS. finished: bool [B].
    """

    tokens: Tensor
    log_probs: Tensor
    finished: Tensor


@dataclass(frozen=True)
class Answers:
    """tokens: int64 [B, T], EOS included, `pad` after it. log_probs: float32 [B, T], of the softmax
    over all tokens at temperature 1, whatever was drawn from; 0 after EOS."""

    tokens: Tensor
    log_probs: Tensor

    @property
    def scores(self) -> Tensor:
        """Sum of log-probabilities up to and with EOS, float32 [B]."""
        return self.log_probs.sum(1)


@torch.no_grad()
def stream(
    model: PaliGemma,
    prompts: TextBatch,
    max_new_tokens: int,
    choose: Choose = most_likely,
    *,
    copies: int = 1,
    eos: int | None = EOS,
    pad: int = PAD,
    allowed: Allowed | None = None,
    check_every: int | None = None,
) -> Iterator[Step]:
    """Yield up to `max_new_tokens` steps; ends some time after every row has said `eos`.

    copies: answers per prompt, B · copies rows in all, those of a prompt one after the other.
    eos: None for an answer of `max_new_tokens` whatever is said.
    allowed: tokens that may be chosen, a bool [vocab] for all steps or a `Grammar`, such as
        `DetectGrammar`.
    check_every: steps between two looks at whether all have finished; 1 on a CPU, 8 elsewhere.
    """
    logits, room = begin(model, prompts, max_new_tokens, copies)
    every = check_every or check_interval(logits.device)
    rows = logits.shape[0]
    finished = torch.zeros(rows, dtype=torch.bool, device=logits.device)
    restriction = Restriction(allowed, rows)
    for step in range(max_new_tokens):
        token = choose(restriction.apply(logits)).masked_fill(finished, pad)
        log_prob = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
        log_prob = log_prob.masked_fill(finished, 0)
        restriction.advance(token)
        if eos is not None:
            finished = finished | (token == eos)
        yield Step(token, log_prob, finished)
        if (step + 1) % every == 0 and finished.all():
            return
        if step + 1 < max_new_tokens:
            logits = at_least_float32(model.step(token[:, None], room)[:, -1])


def generate(
    model: PaliGemma,
    prompts: TextBatch,
    max_new_tokens: int,
    choose: Choose = most_likely,
    *,
    copies: int = 1,
    eos: int | None = EOS,
    pad: int = PAD,
    allowed: Allowed | None = None,
    check_every: int | None = None,
) -> Answers:
    """All of `stream`, as long as the longest answer."""
    steps = list(
        stream(
            model,
            prompts,
            max_new_tokens,
            choose,
            copies=copies,
            eos=eos,
            pad=pad,
            allowed=allowed,
            check_every=check_every,
        )
    )
    going = torch.stack([~step.finished for step in steps])  # [T, B]
    length = min(int(going.any(1).sum()) + 1, len(steps))
    tokens = torch.stack([step.tokens for step in steps[:length]], dim=1)
    return Answers(tokens, torch.stack([step.log_probs for step in steps[:length]], dim=1))


def greedy(
    model: PaliGemma,
    images: Tensor,
    image_valid: Tensor,
    tokens: Tensor,
    token_valid: Tensor,
    max_new_tokens: int,
    eos: int | None = EOS,
    pad: int = PAD,
) -> Tensor:
    """Answer each prompt with its most likely token, one after the other.

    Inputs as for `PaliGemma.prefill`. Returns int64 [B, ≤ max_new_tokens]; a row that said EOS goes
    on with `pad`, and generation ends when all rows have.
    """
    none = torch.zeros_like(token_valid)
    prompts = TextBatch(images, image_valid, tokens, token_valid, none)
    return generate(model, prompts, max_new_tokens, eos=eos, pad=pad).tokens


def best_of(
    model: PaliGemma,
    prompts: TextBatch,
    max_new_tokens: int,
    choose: Choose,
    count: int,
    *,
    eos: int | None = EOS,
    pad: int = PAD,
    allowed: Allowed | None = None,
) -> Answers:
    """Draw `count` answers per prompt and keep the one with the highest score."""
    drawn = generate(
        model, prompts, max_new_tokens, choose, copies=count, eos=eos, pad=pad, allowed=allowed
    )
    best = drawn.scores.unflatten(0, (-1, count)).argmax(1)
    best = best + torch.arange(best.shape[0], device=best.device) * count
    return Answers(drawn.tokens[best], drawn.log_probs[best])


def begin(
    model: PaliGemma, prompts: TextBatch, max_new_tokens: int, copies: int
) -> tuple[Tensor, KVRoom]:
    """Read the prompts: (logits of what comes first, float32 [B · copies, vocab]; the cache of each
    row, with room for the answer)."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    hidden, cache = model.prefill(
        prompts.images,
        prompts.image_valid,
        prompts.tokens,
        prompts.token_valid,
        suffix=prompts.suffix,
    )
    assert hidden is not None
    valid = prompts.token_valid
    index = torch.arange(valid.shape[1], device=valid.device)
    last = (index * valid).amax(1) - valid.shape[1]  # counted from the row's end
    rows = torch.arange(valid.shape[0], device=valid.device)
    logits = at_least_float32(model.embedding.logits(hidden[rows, last]))
    room = KVRoom(cache.repeat(copies), max_new_tokens - 1)
    return logits.repeat_interleave(copies, dim=0), room


def check_interval(device: torch.device) -> int:
    """Steps between two looks at whether all rows have finished."""
    return 1 if device.type == "cpu" else CHECK_EVERY
