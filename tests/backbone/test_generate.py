"""Decoding: in place = without a cache, batched = alone, drawn = as the rule says."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from backbone.beams import beam_search
from backbone.constraints import DetectGrammar
from backbone.decoding import Decoding
from backbone.detections import parse_detections
from backbone.generate import best_of, generate, stream
from backbone.kv_room import KVRoom
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, TextBatch
from backbone.sampling import keep_nucleus, keep_top_k, sampler
from backbone.tokenizer import Tokenizer

EOS = 1


@pytest.fixture(scope="module")
def model():
    """Random weights, float64, whose images and words matter and whose answers vary."""
    torch.manual_seed(3)
    model = PaliGemma(PALIGEMMA_TINY).double().eval()
    torch.nn.init.normal_(model.projector.get_parameter("weight"), std=0.3)
    with torch.no_grad():
        model.embedding.weight.mul_(3)
    return model


def prompts(counts: list[int], lengths: list[int], given: list[int] | None = None) -> TextBatch:
    """A row per pair of a number of pictures and of tokens, of which the last `given` are the
    answer's; padded on the right."""
    generator = torch.Generator().manual_seed(7)
    rows, pictures, length = len(counts), max(counts), max(lengths)
    images = torch.rand(rows, pictures, 3, 32, 32, generator=generator) * 2 - 1
    tokens = torch.randint(5, 1000, (rows, length), generator=generator)
    index = torch.arange(length)
    size = torch.tensor(lengths)[:, None]
    start = size - torch.tensor(given or [0] * rows)[:, None]
    valid = index < size
    return TextBatch(
        images.double(),
        torch.arange(pictures) < torch.tensor(counts)[:, None],
        tokens * valid,
        valid,
        (index >= start) & valid,
    )


def row(batch: TextBatch, i: int) -> TextBatch:
    """Row i alone, without padding or absent pictures."""
    shown, read = batch.image_valid[i], batch.token_valid[i]
    return TextBatch(
        batch.images[i, shown][None],
        batch.image_valid[i, shown][None],
        batch.tokens[i, read][None],
        batch.token_valid[i, read][None],
        batch.suffix[i, read][None],
    )


def without_a_cache(model: PaliGemma, alone: TextBatch, length: int) -> list[int]:
    """Greedy by reading everything again for every token."""
    said: list[int] = []
    for _ in range(length):
        new = torch.tensor(said, dtype=torch.int64)[None]
        tokens = torch.cat([alone.tokens, new], dim=1)
        suffix = torch.cat([alone.suffix, torch.ones_like(new, dtype=torch.bool)], dim=1)
        valid = torch.ones_like(tokens, dtype=torch.bool)
        with torch.no_grad():
            logits = model.logits(replace(alone, tokens=tokens, token_valid=valid, suffix=suffix))
        said.append(int(logits[0, -1].argmax()))
    return said


BATCH = prompts([1, 3, 2, 1], [6, 4, 9, 2], given=[0, 2, 3, 0])


def test_a_mixed_batch_gives_what_reading_everything_again_gives(model):
    said = generate(model, BATCH, 8, eos=None).tokens
    assert len({tuple(r) for r in said.tolist()}) > 1
    for i, tokens in enumerate(said.tolist()):
        assert tokens == without_a_cache(model, row(BATCH, i), 8)


def an_eos(model) -> int:
    """A token that greedy rows say, after different times or never."""
    said = generate(model, BATCH, 8, eos=None).tokens
    return int(said[0, 3])


def test_a_mixed_batch_gives_what_each_row_gives_alone(model):
    eos = an_eos(model)
    together = [
        generate(model, BATCH, 8, eos=eos),
        beam_search(model, BATCH, 8, 3, eos=eos),
    ]
    for i in range(4):
        alone = row(BATCH, i)
        single = [generate(model, alone, 8, eos=eos), beam_search(model, alone, 8, 3, eos=eos)]
        for ours, theirs in zip(together, single, strict=True):
            length = theirs.tokens.shape[1]
            assert ours.tokens[i, :length].tolist() == theirs.tokens[0].tolist()
            assert not ours.tokens[i, length:].any()
            assert (ours.scores[i] - theirs.scores[0]).abs() < 1e-9


def test_looking_for_the_end_less_often_changes_nothing(model):
    eos = an_eos(model)
    for rare in (3, 100):
        for ours, theirs in (
            (
                generate(model, BATCH, 8, eos=eos),
                generate(model, BATCH, 8, eos=eos, check_every=rare),
            ),
            (
                beam_search(model, BATCH, 8, 3, eos=eos),
                beam_search(model, BATCH, 8, 3, eos=eos, check_every=rare),
            ),
        ):
            assert torch.equal(ours.tokens, theirs.tokens)
            assert torch.equal(ours.log_probs, theirs.log_probs)


def test_many_frames_are_read_as_one_prompt(model):
    """16 frames; each of them matters, and none is read past the first token's logits."""
    video = prompts([16], [5])
    tokens = generate(model, video, 6, eos=None).tokens[0].tolist()
    assert tokens == without_a_cache(model, row(video, 0), 6)


def test_a_step_writes_in_place_and_changes_nothing_else(model):
    with torch.no_grad():
        _, cache = model.prefill(
            BATCH.images, BATCH.image_valid, BATCH.tokens, BATCH.token_valid, suffix=BATCH.suffix
        )
        before = [k.clone() for k in cache.k]
        room = KVRoom(cache, 3)
        places = [k.data_ptr() for k in room.cache.k]
        token = torch.tensor([[11], [12], [13], [14]])
        first = model.step(token, room)
        second = model.step(token + 5, room)
        expected, longer = model.decode(token, cache)
        again, longer = model.decode(token + 5, longer)
    assert (first - expected).abs().max() < 1e-12
    assert (second - again).abs().max() < 1e-12
    assert [k.data_ptr() for k in room.cache.k] == places
    assert room.cache.valid[:, -1].tolist() == [False] * 4
    assert all(torch.equal(a, b) for a, b in zip(before, cache.k, strict=True))
    assert torch.equal(room.cache.length, longer.length)


def test_a_full_room_is_told(model):
    with torch.no_grad():
        _, cache = model.prefill(
            BATCH.images, BATCH.image_valid, BATCH.tokens, BATCH.token_valid, cache_only=True
        )
        room = KVRoom(cache, 1)
        model.step(torch.full((4, 1), 9), room)
        with pytest.raises(AssertionError, match="slots are taken"):
            model.step(torch.full((4, 1), 9), room)


def test_an_answer_of_no_length_is_refused(model):
    with pytest.raises(ValueError, match="max_new_tokens is 0, expected 1 or more"):
        generate(model, BATCH, 0)


def test_a_stream_yields_the_same_tokens_one_by_one(model):
    whole = generate(model, BATCH, 8, eos=an_eos(model))
    steps = list(stream(model, BATCH, 8, eos=an_eos(model)))
    assert torch.equal(torch.stack([s.tokens for s in steps], 1), whole.tokens)
    assert torch.equal(torch.stack([s.log_probs for s in steps], 1), whole.log_probs)
    assert steps[-1].finished.tolist() == [an_eos(model) in r for r in whole.tokens.tolist()]


def test_forbidden_tokens_are_never_said_but_weigh_in_the_log_probabilities(model):
    free = generate(model, BATCH, 1, eos=None)
    allowed = torch.ones(PALIGEMMA_TINY.vocab, dtype=torch.bool)
    allowed[free.tokens] = False
    said = generate(model, BATCH, 1, eos=None, allowed=allowed)
    with torch.no_grad():
        for i in range(4):
            logits = model.logits(row(BATCH, i))[0, -1]
            expected = logits.masked_fill(~allowed, -torch.inf).argmax()
            assert said.tokens[i, 0] == expected
            assert (said.log_probs[i, 0] - logits.log_softmax(-1)[expected]).abs() < 1e-9


@pytest.mark.parametrize("beams", [1, 3])
def test_a_restricted_answer_is_read_without_dropping_anything(model, beams):
    tokenizer = Tokenizer.small()
    grammar = DetectGrammar(tokenizer, ["cup", "red spoon"], allow_none=False)
    if beams == 1:
        said = generate(model, BATCH, 60, allowed=grammar)
    else:
        said = beam_search(model, BATCH, 30, beams, allowed=grammar)
    for tokens in said.tokens.tolist():
        if EOS not in tokens:
            continue  # cut short
        parsed = parse_detections(tokenizer.decode(tokens))
        assert parsed.items
        assert not parsed.dropped
        assert {item.name for item in parsed.items} <= {"cup", "red spoon"}
    assert any(EOS in tokens for tokens in said.tokens.tolist())


def test_beams_that_may_not_end_give_no_answer(model):
    """As long as the grammar needs more tokens than there may be."""
    grammar = DetectGrammar(Tokenizer.small(), ["cup"], allow_none=False)
    said = beam_search(model, BATCH, 3, 2, allowed=grammar)
    assert not said.tokens.any()


def brute_force(model: PaliGemma, alone: TextBatch, words: list[int], eos: int, most: int):
    """The best of all answers over a few words, by reading each of them whole."""
    best, best_score = None, -torch.inf
    answers: list[list[int]] = [[]]
    for _ in range(most):
        answers = [[*a, w] for a in answers for w in words]
        for answer in [[*a[:-1], eos] for a in answers]:
            new = torch.tensor(answer)[None]
            tokens = torch.cat([alone.tokens, new], dim=1)
            batch = replace(
                alone,
                tokens=tokens,
                token_valid=torch.ones_like(tokens, dtype=torch.bool),
                suffix=torch.cat([alone.suffix, torch.ones_like(new, dtype=torch.bool)], dim=1),
            )
            with torch.no_grad():
                logs = model.logits(batch)[0].log_softmax(-1)
            at = torch.arange(alone.tokens.shape[1] - 1, tokens.shape[1] - 1)
            score = float(logs[at, new[0]].sum())
            if score > best_score:
                best, best_score = answer, score
    return best, best_score


def test_beams_as_wide_as_the_tree_find_the_best_answer_of_all(model):
    """4 words besides EOS, answers of up to 3 tokens: 16 beams hold every one of them."""
    alone, words, eos = row(BATCH, 0), [30, 31, 32, 33], 40
    allowed = torch.zeros(PALIGEMMA_TINY.vocab, dtype=torch.bool)
    allowed[[*words, eos]] = True
    said = beam_search(model, alone, 3, 16, eos=eos, allowed=allowed)
    best, score = brute_force(model, alone, words, eos, 3)
    assert said.tokens[0].tolist() == best
    assert abs(float(said.scores[0]) - score) < 1e-9


def test_best_of_keeps_the_draw_with_the_highest_score(model):
    eos = an_eos(model)
    choose = sampler(1.5, generator=torch.Generator().manual_seed(5))
    drawn = generate(model, BATCH, 5, choose, copies=6, eos=eos)
    choose = sampler(1.5, generator=torch.Generator().manual_seed(5))
    kept = best_of(model, BATCH, 5, choose, 6, eos=eos)
    scores = drawn.scores.view(4, 6)
    assert torch.equal(kept.scores, scores.amax(1))
    assert scores.amax(1).gt(scores.amin(1)).all()


def test_the_same_generator_draws_the_same_answer(model):
    def draw(seed: int) -> Tensor:
        choose = sampler(2.0, generator=torch.Generator().manual_seed(seed))
        return generate(model, BATCH, 5, choose, eos=None).tokens

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_top_k_keeps_the_k_highest_and_their_equals():
    logits = torch.tensor([[1.0, 4.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    kept = keep_top_k(logits, 2).isfinite()
    assert kept.tolist() == [[False, True, True, True], [False, False, True, True]]
    assert keep_top_k(logits, 9).isfinite().all()


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.5, [2]), (0.51, [2, 0]), (0.75, [2, 0]), (0.8, [2, 0, 1]), (1.0, [2, 0, 1, 3])],
)
def test_the_nucleus_ends_with_the_token_that_reaches_p(p, kept):
    """Probabilities 1/4, 1/8, 1/2, 1/8; equals of the last one stay."""
    logits = torch.tensor([[0.25, 0.125, 0.5, 0.125]]).log()
    if p == 0.8:
        kept = [2, 0, 1, 3]
    expected = torch.zeros(4, dtype=torch.bool)
    expected[kept] = True
    assert keep_nucleus(logits, p).isfinite()[0].tolist() == expected.tolist()


def test_draws_have_the_frequencies_of_the_softmax_at_this_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    choose = sampler(0.7, top_k=3, generator=torch.Generator().manual_seed(0))
    draws = choose(logits.expand(20_000, 4))
    expected = (logits[:3] / 0.7).softmax(-1)
    measured = draws.bincount(minlength=4) / 20_000
    assert measured[3] == 0
    assert (measured[:3] - expected).abs().max() < 0.015


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected a whole number"),
        ({"beams": 1.5}, "beams is 1.5, expected a whole number"),
        ({"temperature": float("nan")}, "temperature is nan, expected 0"),
        ({"temperature": -1.0}, "temperature is -1.0, expected 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0, expected above 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0, expected a whole number"),
        ({"top_p": 0.9}, "top_p needs a temperature above 0"),
        ({"best_of": 3}, "best_of needs a temperature above 0"),
        ({"beams": 3, "temperature": 1.0}, "beams exclude temperature"),
    ],
)
def test_impossible_decodings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)
