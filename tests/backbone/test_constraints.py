"""Masked decoding of boxes: every path through the grammar is an answer that can be read."""

import numpy as np
import pytest
import torch

from backbone.constraints import DetectGrammar
from backbone.detections import Box, Detection, detection_answer, parse_detections
from backbone.tokenizer import Tokenizer

NAMES = ["red square", "red", "blue plate", "Grüße, 你好", "red square on the left"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.small()


def random_answer(grammar, rng, steps):
    """Draw allowed tokens until EOS."""
    tokens = []
    for _ in range(steps):
        allowed = grammar.allowed(torch.tensor(tokens, dtype=torch.int64)).nonzero()[:, 0]
        tokens.append(int(rng.choice(allowed.numpy())))
        if tokens[-1] == Tokenizer.eos:
            break
    return tokens


@pytest.mark.parametrize("segment", [False, True])
def test_whatever_is_drawn_is_a_whole_answer(tokenizer, segment):
    grammar = DetectGrammar(tokenizer, NAMES, segment, allow_none=False)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(150):
        tokens = random_answer(grammar, rng, 500)
        assert tokens[-1] == tokenizer.eos
        text = tokenizer.decode(tokens)
        parsed = parse_detections(text)
        assert parsed.dropped == ()
        assert len(parsed.items) >= 1
        assert {item.name for item in parsed.items} <= set(NAMES)
        assert all((item.codes is not None) == segment for item in parsed.items)
        assert detection_answer(parsed.items) == text
        seen |= {item.name for item in parsed.items}
    assert seen == set(NAMES)


@pytest.mark.parametrize("segment", [False, True])
def test_every_answer_that_is_trained_on_is_allowed(tokenizer, segment):
    codes = tuple(range(16)) if segment else None
    boxes = [Box(0, 0, 1, 1), Box(0.1, 0.2, 0.3, 0.4), Box(0.9, 0, 1, 0.01)]
    things = [Detection(name, boxes[i % 3], codes) for i, name in enumerate(NAMES)]
    grammar = DetectGrammar(tokenizer, NAMES, segment)
    for answer in (things, things[::-1], things[:1], things[:1] * 3, []):
        ids = tokenizer.encode(detection_answer(answer), eos=True)
        state = grammar.start
        for i, token in enumerate(ids):
            allowed = grammar.allowed(torch.tensor(ids[:i], dtype=torch.int64))
            assert allowed[token]
            assert torch.equal(allowed, grammar.mask(state))
            state = grammar.advance(state, token)


def ids_of(mask):
    return mask.nonzero()[:, 0].tolist()


def test_each_step_allows_exactly_its_kind(tokenizer):
    grammar = DetectGrammar(tokenizer, ["red", "plate"], segment=True)
    loc, seg = tokenizer.loc, tokenizer.seg
    red, plate = tokenizer.encode(" red")[0], tokenizer.encode(" plate")[0]
    semicolon, space = tokenizer.encode("x ; <loc0000>")[1:-1]
    steps = [
        (loc(5), [tokenizer.eos, *range(loc(0), loc(1023))]),
        (loc(1000), list(range(loc(0), loc(1023)))),
        (loc(6), list(range(loc(6), loc(1023) + 1))),
        (loc(1023), list(range(loc(1001), loc(1023) + 1))),
        *[(seg(i), list(range(seg(0), seg(127) + 1))) for i in range(16)],
        (plate, sorted([red, plate])),
        (semicolon, [tokenizer.eos, semicolon]),
        (space, [space]),
        (loc(0), list(range(loc(0), loc(1023)))),  # after " ; " there is no way out
    ]
    tokens: list[int] = []
    for token, expected in steps:
        assert ids_of(grammar.allowed(torch.tensor(tokens, dtype=torch.int64))) == expected
        tokens.append(token)


def test_rows_are_independent_and_a_finished_row_goes_on_with_padding(tokenizer):
    grammar = DetectGrammar(tokenizer, ["plate"])
    answer = tokenizer.encode("<loc0001><loc0002><loc0003><loc0004> plate", eos=True)
    rows = torch.tensor([answer, [tokenizer.eos] + [tokenizer.pad] * 5])
    allowed = grammar.allowed(rows[:, :4])
    assert allowed.shape == (2, tokenizer.vocab_size)
    assert ids_of(allowed[0]) == tokenizer.encode(" plate")
    assert ids_of(allowed[1]) == [tokenizer.pad]
    assert [ids_of(row) for row in grammar.allowed(rows)] == [[tokenizer.pad]] * 2


def test_work_does_not_grow_with_the_answer(tokenizer, monkeypatch):
    grammar = DetectGrammar(tokenizer, ["plate"], segment=True)
    thing = Detection("plate", Box(0, 0, 1, 1), tuple(range(16)))
    steps = []
    advance = DetectGrammar.advance
    monkeypatch.setattr(DetectGrammar, "advance", lambda *a: steps.append(0) or advance(*a))
    counts = set()
    for things in (1, 10, 100):
        grammar.allowed(torch.tensor(tokenizer.encode(detection_answer([thing] * things))))
        counts.add(len(steps))
        steps.clear()
    assert counts == {4 + 16 + 1}


def test_an_empty_answer_can_be_forbidden(tokenizer):
    nothing = torch.zeros(0, dtype=torch.int64)
    assert DetectGrammar(tokenizer, ["plate"]).allowed(nothing)[tokenizer.eos]
    grammar = DetectGrammar(tokenizer, ["plate"], allow_none=False)
    assert not grammar.allowed(nothing)[tokenizer.eos]


def test_more_logits_than_tokens_are_masked_out(tokenizer):
    grammar = DetectGrammar(tokenizer, ["plate"], vocab_size=tokenizer.vocab_size + 64)
    mask = grammar.mask(grammar.start)
    assert mask.shape == (tokenizer.vocab_size + 64,)
    assert not mask[tokenizer.vocab_size :].any()
    with pytest.raises(ValueError, match="vocab_size 100 is less"):
        DetectGrammar(tokenizer, ["plate"], vocab_size=100)


def test_tokens_and_names_outside_the_grammar_are_refused(tokenizer):
    grammar = DetectGrammar(tokenizer, ["plate"])
    with pytest.raises(ValueError, match="can't come here"):
        grammar.allowed(torch.tensor([5]))
    with pytest.raises(ValueError, match="can't come here"):
        grammar.allowed(torch.tensor([tokenizer.loc(4), tokenizer.loc(4), tokenizer.loc(4)]))
    with pytest.raises(ValueError, match=r"expected tokens \[T\] or \[B, T\]"):
        grammar.allowed(torch.zeros(1, 1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="holds ';'"):
        DetectGrammar(tokenizer, ["a ; b"])
