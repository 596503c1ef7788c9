"""Masked decoding of boxes: every path through the grammar is an answer that can be read."""

import numpy as np
import pytest
import torch
from grammar_reference import may_follow

from backbone.constraints import DetectGrammar
from backbone.detections import Box, Detection, detection_answer, parse_detections
from backbone.tokenizer import Tokenizer

NAMES = ["red square", "red", "blue plate", "Grüße, 你好", "red square on the left"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.small()


def ids_of(mask):
    return mask.nonzero()[:, 0].tolist()


def masks(grammar, *answers):
    """What is allowed at the start and after each token of answers of one length."""
    state = grammar.start(len(answers))
    yield grammar.allowed(state)
    for tokens in torch.tensor(answers).T:
        state = grammar.advance(state, tokens)
        yield grammar.allowed(state)


def random_answer(grammar, rng, steps):
    """Draw allowed tokens until EOS."""
    tokens, state = [], grammar.start(1)
    for _ in range(steps):
        tokens.append(int(rng.choice(ids_of(grammar.allowed(state)[0]))))
        state = grammar.advance(state, torch.tensor(tokens[-1:]))
        if tokens[-1] == Tokenizer.eos:
            break
    return tokens


@pytest.mark.parametrize("allow_none", [False, True])
@pytest.mark.parametrize("segment", [False, True])
def test_what_is_allowed_is_what_reading_from_the_start_allows(tokenizer, segment, allow_none):
    """In random answers, several at once, with padding where one is shorter."""
    grammar = DetectGrammar(tokenizer, NAMES, segment, allow_none)
    rng = np.random.default_rng(1)
    answers = [random_answer(grammar, rng, 70) for _ in range(12)]
    longest = max(map(len, answers))
    rows = [[*answer, *[tokenizer.pad] * (longest - len(answer))] for answer in answers]
    for step, allowed in enumerate(masks(grammar, *rows)):
        for row, mask in zip(rows, allowed, strict=True):
            expected = may_follow(tokenizer, NAMES, segment, allow_none, row[:step])
            assert set(ids_of(mask)) == expected


def test_a_row_goes_on_from_another_ones_state(tokenizer):
    grammar = DetectGrammar(tokenizer, ["plate"])
    loc = tokenizer.loc
    state = grammar.start(2)
    for tokens in ([loc(3), loc(900)], [loc(7), loc(0)]):
        state = grammar.advance(state, torch.tensor(tokens))
    state = grammar.advance(state[torch.tensor([1, 0])], torch.tensor([loc(901), loc(4)]))
    low, high = grammar.allowed(state)
    assert (ids_of(low)[0], ids_of(high)[0]) == (loc(1), loc(8))


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
        for (allowed,), token in zip(masks(grammar, ids), [*ids, tokenizer.pad], strict=True):
            assert allowed[token]


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
    seen = masks(grammar, [token for token, _ in steps])
    for (mask,), (_, expected) in zip(seen, steps, strict=False):
        assert ids_of(mask) == expected


def test_rows_are_independent_and_a_finished_row_goes_on_with_padding(tokenizer):
    grammar = DetectGrammar(tokenizer, ["plate"])
    answer = tokenizer.encode("<loc0001><loc0002><loc0003><loc0004> plate", eos=True)
    seen = list(masks(grammar, answer, [tokenizer.eos] + [tokenizer.pad] * 5))
    assert seen[4].shape == (2, tokenizer.vocab_size)
    assert ids_of(seen[4][0]) == tokenizer.encode(" plate")
    assert ids_of(seen[4][1]) == [tokenizer.pad]
    assert [ids_of(row) for row in seen[-1]] == [[tokenizer.pad]] * 2


def test_no_step_waits_for_the_host(tokenizer):
    """On torch's meta device there are no values: reading one fails."""
    grammar = DetectGrammar(tokenizer, NAMES, segment=True, device="meta")
    state, tokens = grammar.start(3), torch.zeros(3, dtype=torch.int64, device="meta")
    assert grammar.allowed(grammar.advance(state, tokens)).shape == (3, tokenizer.vocab_size)
    with pytest.raises(RuntimeError, match="meta"):
        tokens[0].item()


def test_an_empty_answer_can_be_forbidden(tokenizer):
    for allow_none in (True, False):
        grammar = DetectGrammar(tokenizer, ["plate"], allow_none=allow_none)
        assert grammar.allowed(grammar.start(1))[0, tokenizer.eos] == allow_none


def test_more_logits_than_tokens_are_masked_out(tokenizer):
    grammar = DetectGrammar(tokenizer, ["plate"], vocab_size=tokenizer.vocab_size + 64)
    mask = grammar.allowed(grammar.start(1))
    assert mask.shape == (1, tokenizer.vocab_size + 64)
    assert not mask[:, tokenizer.vocab_size :].any()
    with pytest.raises(ValueError, match="vocab_size 100 is less"):
        DetectGrammar(tokenizer, ["plate"], vocab_size=100)


def test_after_a_token_outside_the_grammar_nothing_is_allowed(tokenizer):
    grammar = DetectGrammar(tokenizer, ["plate"])
    loc, pad = tokenizer.loc, tokenizer.pad
    *_, last = masks(grammar, [loc(4), loc(4), loc(4)], [5, 5, loc(0)], [loc(1023), loc(1), loc(1)])
    assert not last.any()
    *_, last = masks(grammar, [5, pad])  # what a beam says that has died
    assert ids_of(last[0]) == [pad]


def test_names_that_the_grammar_cant_carry_are_refused(tokenizer):
    with pytest.raises(ValueError, match="holds ';'"):
        DetectGrammar(tokenizer, ["a ; b"])
