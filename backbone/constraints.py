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

import torch
from torch import Tensor

from backbone.detections import SEG_TOKENS, SEPARATOR
from backbone.tasks import check_names
from backbone.tokenizer import NUM_LOC, NUM_SEG, Tokenizer


@dataclass(frozen=True)
class _Node:
    """One of: a `<loc>` is next (the how-manieth), a `<seg>` is next, or one of `tokens` is."""

    tokens: Mapping[int, int]  # token id → next node
    loc: int | None = None  # 0..3
    seg: bool = False
    next: int = 0  # after a <loc> or <seg>


class DetectGrammar:
    """The answers to "detect a ; b" (or "segment a ; b") over one vocabulary: a `Grammar`.

    A state is int64 [B, 3], for each answer the node of the graph above and the corner (y0, x0) of
    the open box. Both tables, node × kind of token, are made once and lie on the device; a step
    looks up in them and never waits for the host.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        names: Sequence[str],
        segment: bool = False,
        allow_none: bool = True,
        vocab_size: int | None = None,
        device: torch.device | str = "cpu",
    ):
        """names: what was asked for. segment: 16 `<seg>` follow each box. allow_none: the answer
        may be empty (EOS at once). vocab_size: columns of the logits, where the model has more than
        the tokenizer (Hugging Face's 257216); these are never allowed. device: of the logits.

        Raises ValueError for names that the grammar can't carry, or too small a vocab_size.
        """
        vocab_size = vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"vocab_size {vocab_size} is less than the tokenizer's {tokenizer.vocab_size} ids"
            )
        nodes = _build(tokenizer, check_names(names), segment, allow_none)
        words = sorted({token for node in nodes for token in node.tokens})
        self._loc0, self._nowhere = tokenizer.loc(0), len(nodes)

        kind = torch.full((vocab_size,), _OTHER)
        kind[self._loc0 : self._loc0 + NUM_LOC] = _LOC
        kind[tokenizer.seg(0) : tokenizer.seg(0) + NUM_SEG] = _SEG
        kind[words] = torch.arange(len(words)) + _SEG + 1

        after = torch.full((len(nodes) + 1, _SEG + 1 + len(words)), self._nowhere)
        for row, node in zip(after, nodes, strict=False):
            if node.loc is not None:
                row[_LOC] = node.next
            if node.seg:
                row[_SEG] = node.next
            row[kind[list(node.tokens)]] = torch.tensor([*node.tokens.values()], dtype=torch.int64)
        open_ = after != self._nowhere
        after[:, kind[tokenizer.pad]] = _DONE  # a beam that has died says it anywhere
        locs = torch.tensor([_NO_LOC if node.loc is None else node.loc for node in nodes])

        self._kind = kind.to(device)  # [vocab], of each token
        self._after = after.to(device)  # [nodes + 1, kinds], the next node
        self._open = open_.to(device)  # [nodes + 1, kinds], what is allowed
        self._loc = torch.cat([locs, torch.tensor([_NO_LOC])]).to(device)  # [nodes + 1]
        self._bins = torch.arange(NUM_LOC, device=device)

    def start(self, rows: int) -> Tensor:
        """The state of `rows` answers of which nothing has been said."""
        return self._bins.new_full((rows, 3), _START)

    def allowed(self, state: Tensor) -> Tensor:
        """What may come next, bool [B, vocab]: pad alone after EOS, nothing after a token that was
        not allowed, else at least one token."""
        mask = self._open[state[:, 0]].index_select(1, self._kind)
        least, most = self._range(state)
        bins = self._bins
        within = (bins >= least[:, None]) & (bins <= most[:, None])
        mask[:, self._loc0 : self._loc0 + NUM_LOC] &= within
        return mask

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The state after one more token of each answer, int64 [B]."""
        node, y0, x0 = state.unbind(1)
        loc, kind, at = self._loc[node], self._kind[tokens], tokens - self._loc0
        least, most = self._range(state)
        fits = (kind != _LOC) | ((least <= at) & (at <= most))
        node = self._after[node, kind].where(fits, self._nowhere)
        return torch.stack([node, at.where(loc == 0, y0), at.where(loc == 1, x0)], dim=1)

    def _range(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest bin where a `<loc>` is next: y1 lies beyond y0, x1 beyond x0, and
        y0 and x0 leave room for them."""
        node, y0, x0 = state.unbind(1)
        loc = self._loc[node]
        least = (y0 + 1) * (loc == 2) + (x0 + 1) * (loc == 3)
        return least, NUM_LOC - 1 - (loc < 2).long()


_OTHER, _LOC, _SEG = 0, 1, 2  # kinds of tokens; each further one is a kind of its own
_NO_LOC = 4
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
