"""Beam search as big_vision does it (`predict_fns.py`).

The best *finished* answer of each prompt competes with N *live* ones. In every step

  1. each live answer is ended with EOS on trial; the best of these may replace the finished one;
  2. each is continued by its N + 1 most likely tokens; EOS is struck out, the N best of all go on.

It ends when no live answer scores as high as the finished one. A score is the sum of
log-probabilities with EOS's, and isn't divided by the length: Hugging Face's `length_penalty=0`,
which differs in that only an EOS among a step's 2N best ends an answer there.
"""

import torch
from torch import Tensor

from backbone.gemma import at_least_float32
from backbone.generate import EOS, PAD, Answers, begin, check_interval
from backbone.paligemma import PaliGemma, TextBatch
from backbone.restriction import Allowed, Restriction


@torch.no_grad()
def beam_search(
    model: PaliGemma,
    prompts: TextBatch,
    max_new_tokens: int,
    beams: int,
    *,
    eos: int = EOS,
    pad: int = PAD,
    allowed: Allowed | None = None,
    check_every: int | None = None,
) -> Answers:
    """The best answer of each prompt, at most `max_new_tokens` long with its EOS.

    beams: N. allowed, check_every: as in `stream`. An answer that hasn't ended by then is none, so
    every answer ends in EOS; where `allowed` left no way to end, it is `pad` with score −inf.
    """
    logits, room = begin(model, prompts, max_new_tokens, beams)
    rows, device = prompts.tokens.shape[0], logits.device
    every = check_every or check_interval(device)
    first = torch.arange(rows, device=device)[:, None] * beams
    live = _Answers.empty(logits, rows, beams, max_new_tokens, pad)
    live.score[:, 1:] = -torch.inf  # all beams start out the same: one of them counts
    best = _Answers.empty(logits, rows, 1, max_new_tokens, pad)
    best.score.fill_(-torch.inf)
    restriction = Restriction(allowed, rows * beams)
    for step in range(max_new_tokens):
        usable = restriction.apply(logits.log_softmax(-1)).unflatten(0, (rows, beams))
        best = best.or_better(live.ended(usable[..., eos], step, eos))
        if step + 1 == max_new_tokens:
            break
        live, parent = live.continued(usable, step, eos, pad)
        if (step + 1) % every == 0 and (live.score.amax(1) < best.score[:, 0]).all():
            break
        source, token = (parent + first).flatten(), live.tokens[..., step].flatten()
        restriction.advance(token, source)
        room.reorder(source)
        logits = at_least_float32(model.step(token[:, None], room)[:, -1])
    length = max(int((best.tokens == eos).int().argmax(-1).max()) + 1, 1)
    return Answers(best.tokens[:, 0, :length], best.log_probs[:, 0, :length])


class _Answers:
    """tokens: int64 [B, N, T], `pad` beyond what was said. log_probs: float32 [B, N, T], theirs.
    score: float32 [B, N], their sum or −inf."""

    def __init__(self, tokens: Tensor, log_probs: Tensor, score: Tensor):
        self.tokens, self.log_probs, self.score = tokens, log_probs, score

    @classmethod
    def empty(cls, like: Tensor, rows: int, beams: int, length: int, pad: int) -> "_Answers":
        tokens = torch.full((rows, beams, length), pad, device=like.device)
        return cls(tokens, like.new_zeros(tokens.shape), like.new_zeros(rows, beams))

    def pick(self, index: Tensor) -> "_Answers":
        """For each row the answers of `index`, int64 [B, M], in that order; copies."""
        wide = index[..., None].expand(-1, -1, self.tokens.shape[-1])
        tokens, log_probs = self.tokens.gather(1, wide), self.log_probs.gather(1, wide)
        return _Answers(tokens, log_probs, self.score.gather(1, index))

    def say(self, step: int, tokens: Tensor, log_probs: Tensor, score: Tensor) -> "_Answers":
        self.tokens[..., step], self.log_probs[..., step] = tokens, log_probs
        return _Answers(self.tokens, self.log_probs, score)

    def ended(self, eos_log_prob: Tensor, step: int, eos: int) -> "_Answers":
        """The best of them if all were to end now; eos_log_prob: float32 [B, N]."""
        score, which = (self.score + eos_log_prob).max(1, keepdim=True)
        said = torch.full_like(which, eos)
        return self.pick(which).say(step, said, eos_log_prob.gather(1, which), score)

    def or_better(self, other: "_Answers") -> "_Answers":
        better = other.score > self.score
        return _Answers(
            torch.where(better[..., None], other.tokens, self.tokens),
            torch.where(better[..., None], other.log_probs, self.log_probs),
            torch.where(better, other.score, self.score),
        )

    def continued(
        self, log_probs: Tensor, step: int, eos: int, pad: int
    ) -> tuple["_Answers", Tensor]:
        """The N best continuations without EOS, and which beam each continues, int64 [B, N].

        log_probs: float32 [B, N, vocab]. One that isn't allowed scores −inf and says `pad`.
        """
        beams = self.score.shape[1]
        more, tokens = log_probs.topk(min(beams + 1, log_probs.shape[-1]), dim=-1)
        more = more.masked_fill(tokens == eos, -torch.inf)
        total = (self.score[..., None] + more).flatten(1)
        score, index = total.topk(beams, dim=1)
        parent = index // more.shape[-1]
        dead = score == -torch.inf
        token = tokens.flatten(1).gather(1, index).masked_fill(dead, pad)
        gained = more.flatten(1).gather(1, index).masked_fill(dead, 0)
        return self.pick(parent).say(step, token, gained, score), parent
