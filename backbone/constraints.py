"""Which tokens may come next, so that an answer to "detect" or "segment" is always well-formed.

    start ─<loc>→ ─<loc>→ ─<loc>→ ─<loc>→ [16 × <seg>] ─ tokens of one of the names ─→ EOS
      ↑                                                                             │
      └──────────────────────────────── " ; " ──────────────────────────────────────┘

The third and fourth `<loc>` must be larger than the first and second (y0, x0, y1, x1), so a box has
an extent. What is generated under these masks, `parse_detections` reads without dropping anything,
unless it is cut short.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from backbone.detections import SEG_TOKENS, SEPARATOR
from backbone.tasks import check_names
from backbone.tokenizer import NUM_LOC, NUM_SEG, Tokenizer


class State(NamedTuple):
    """Where an answer stands: a node of the grammar, and the corner (y0, x0) of an open box."""

    node: int
    y0: int = 0
    x0: int = 0


@dataclass(frozen=True)
class _Node:
    """One of: a `<loc>` is next (the how-manieth), a `<seg>` is next, or one of `tokens` is."""

    tokens: Mapping[int, int]  # token id → next node
    loc: int | None = None  # 0..3
    seg: bool = False
    next: int = 0  # after a <loc> or <seg>


class DetectGrammar:
    """The answers to "detect a ; b" (or "segment a ; b") over one vocabulary, as a state machine.

    `allowed(tokens)` is the whole use of it in a decoding loop; it looks back to the start of the
    open item only, so its cost does not grow with the answer. `start`, `advance` and `mask` are the
    same step by step; a state is a plain value, so beams can share and reorder states.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        names: Sequence[str],
        segment: bool = False,
        allow_none: bool = True,
        vocab_size: int | None = None,
    ):
        """names: what was asked for. segment: 16 `<seg>` follow each box. allow_none: the answer
        may be empty (EOS at once). vocab_size: columns of the logits, where the model has more than
        the tokenizer (Hugging Face's 257216); these are never allowed.

        Raises ValueError for names that the grammar can't carry, or too small a vocab_size.
        """
        self.vocab_size = vocab_size or tokenizer.vocab_size
        if self.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"vocab_size {vocab_size} is less than the tokenizer's {tokenizer.vocab_size} ids"
            )
        self._loc0, self._seg0 = tokenizer.loc(0), tokenizer.seg(0)
        self._eos, self._pad = tokenizer.eos, tokenizer.pad
        self._nodes = _build(tokenizer, check_names(names), segment, allow_none)
        self.start = State(_START)

    def allowed(self, tokens: Tensor) -> Tensor:
        """What may follow the tokens generated so far (prompt not included).

        Args:
            tokens: int [T], or [B, T] for B rows; T may be 0. After EOS only pad follows.

        Returns bool [vocab_size] or [B, vocab_size] on the device of `tokens`.

        Raises ValueError for tokens that this grammar does not allow.
        """
        if tokens.ndim == 1:
            return self.mask(self._state(tokens.tolist())).to(tokens.device)
        if tokens.ndim != 2:
            raise ValueError(f"expected tokens [T] or [B, T], got shape {list(tokens.shape)}")
        masks = [self.mask(self._state(row)) for row in tokens.tolist()]
        return torch.stack(masks).to(tokens.device)

    def advance(self, state: State, token: int) -> State:
        """The state after `token`. Raises ValueError if `mask(state)` does not allow it."""
        node = self._nodes[state.node]
        if token in node.tokens:
            return State(node.tokens[token])
        bin_ = token - self._loc0
        if node.loc is not None and _least(node, state) <= bin_ <= _most(node):
            y0 = bin_ if node.loc == 0 else state.y0
            x0 = bin_ if node.loc == 1 else state.x0
            return State(node.next, y0, x0)
        if node.seg and 0 <= token - self._seg0 < NUM_SEG:
            return State(node.next)
        raise ValueError(f"token id {token} can't come here; draw from the allowed tokens only")

    def mask(self, state: State) -> Tensor:
        """The tokens that may come next, bool [vocab_size]; at least one is True."""
        node = self._nodes[state.node]
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask[list(node.tokens)] = True
        if node.loc is not None:
            mask[self._loc0 + _least(node, state) : self._loc0 + _most(node) + 1] = True
        if node.seg:
            mask[self._seg0 : self._seg0 + NUM_SEG] = True
        return mask

    def _state(self, tokens: list[int]) -> State:
        if tokens and tokens[-1] in (self._eos, self._pad):
            return State(_DONE)
        state = self.start
        for token in tokens[self._item_start(tokens) :]:
            state = self.advance(state, token)
        return state

    def _item_start(self, tokens: list[int]) -> int:
        """Where the last run of `<loc>` begins; everything before it is settled."""
        i = len(tokens)
        while i > 0 and not self._is_loc(tokens[i - 1]):
            i -= 1
        while i > 0 and self._is_loc(tokens[i - 1]):
            i -= 1
        return i

    def _is_loc(self, token: int) -> bool:
        return 0 <= token - self._loc0 < NUM_LOC


_START, _DONE, _FIRST_LOC = 0, 1, 2


def _build(
    tokenizer: Tokenizer, names: Sequence[str], segment: bool, allow_none: bool
) -> list[_Node]:
    """The grammar's nodes; names that begin alike share nodes, as in a trie."""
    after_box = _FIRST_LOC + 4
    names_at = after_box + (SEG_TOKENS if segment else 0)
    nodes = [
        # The start is the first <loc> of an answer, which may end instead of beginning.
        _Node({tokenizer.eos: _DONE} if allow_none else {}, loc=0, next=_FIRST_LOC + 1),
        _Node({tokenizer.pad: _DONE}),
        *(_Node({}, loc=i, next=_FIRST_LOC + i + 1) for i in range(4)),
        *(_Node({}, seg=True, next=i + 1) for i in range(after_box, names_at)),
    ]
    trie: list[dict[int, int]] = [{}]
    for name in names:
        more, last = _spelled(tokenizer, name)
        _insert(trie, names_at, more, _FIRST_LOC)
        _insert(trie, names_at, [*last, tokenizer.eos], _DONE)
    return nodes + [_Node(tokens) for tokens in trie]


def _spelled(tokenizer: Tokenizer, name: str) -> tuple[list[int], list[int]]:
    """A name's tokens as they stand in an answer: before another box, and at the end.

    They are read off whole answers, because the tokens of a piece of text depend on what is beside
    it (the space of " ; " before a `<loc>` becomes a token of its own).
    """
    loc = "<loc0000>"
    more = tokenizer.encode(f"{loc} {name}{SEPARATOR}{loc}")[1:-1]
    return more, tokenizer.encode(f"{loc} {name}")[1:]


def _insert(trie: list[dict[int, int]], offset: int, path: list[int], target: int) -> None:
    """Add a path of tokens that leads from the trie's root to the node `target`.

    No path is the beginning of another: each ends in EOS or in the only separator it holds.
    """
    at = 0
    for token in path[:-1]:
        if token not in trie[at]:
            trie[at][token] = offset + len(trie)
            trie.append({})
        at = trie[at][token] - offset
    assert trie[at].get(path[-1], target) == target, "two names share all of their tokens"
    trie[at][path[-1]] = target


def _least(node: _Node, state: State) -> int:
    """The lowest bin: y1 lies beyond y0, x1 beyond x0."""
    return {2: state.y0 + 1, 3: state.x0 + 1}.get(node.loc or 0, 0)


def _most(node: _Node) -> int:
    """The highest bin; y0 and x0 leave room for y1 and x1."""
    return NUM_LOC - 2 if node.loc in (0, 1) else NUM_LOC - 1
