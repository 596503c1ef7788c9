"""Which tokens may come next while answers are being generated."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Grammar(Protocol):
    """A state machine over B answers at once. A state is a tensor [B, …], a row per answer."""

    def start(self, rows: int) -> Tensor:
        """The state of `rows` answers of which nothing has been said."""
        ...

    def allowed(self, state: Tensor) -> Tensor:
        """What may come next, bool [B, vocab]."""
        ...

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The state after one more token each, int64 [B]: `pad` after a row's EOS."""
        ...


type Allowed = Grammar | Tensor  # a bool [vocab] allows the same tokens always


class Restriction:
    """What is allowed in each of some answers, all of which begin here. None: everything is."""

    def __init__(self, allowed: Allowed | None, rows: int):
        self._mask = allowed if isinstance(allowed, Tensor) else None
        self._grammar = None if isinstance(allowed, Tensor) else allowed
        self._state = None if self._grammar is None else self._grammar.start(rows)

    def apply(self, logits: Tensor) -> Tensor:
        """−inf where a token isn't allowed. logits: float [B, vocab]."""
        if self._grammar is not None and self._state is not None:
            return logits.masked_fill(~self._grammar.allowed(self._state), -torch.inf)
        return logits if self._mask is None else logits.masked_fill(~self._mask, -torch.inf)

    def advance(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        """Say one more token in each answer, int64 [B].

        rows: int64 [B]; answer i goes on from what was answer rows[i] (beams).
        """
        if self._grammar is not None and self._state is not None:
            state = self._state if rows is None else self._state[rows]
            self._state = self._grammar.advance(state, tokens)
