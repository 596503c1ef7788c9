"""The text loss: mean over examples of the mean over answer tokens, EOS included."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone.masks import prefix_lm
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, TextBatch

VOCAB = 9
BOS, EOS, NEWLINE, PAD = 2, 1, 5, 0


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PaliGemma(dataclasses.replace(PALIGEMMA_TINY, vocab=VOCAB))


def batch(answers: list[list[int]], length: int) -> TextBatch:
    """Prompt [BOS, 6, newline], then each answer and EOS, padded to `length`."""
    rows = [[BOS, 6, NEWLINE, *answer, EOS] for answer in answers]
    tokens = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    index = torch.arange(length)[None]
    ends = torch.tensor([[len(row)] for row in rows])
    valid = index < ends
    resolution = PALIGEMMA_TINY.vision.resolution
    return TextBatch(
        images=torch.zeros(len(rows), 1, 3, resolution, resolution),
        image_valid=torch.ones(len(rows), 1, dtype=torch.bool),
        tokens=tokens,
        token_valid=valid,
        suffix=valid & (index >= 3),
    )


def say(logits, model, monkeypatch):
    """Let `model` compute these logits [B, T, vocab], whatever it reads."""
    monkeypatch.setattr(model, "hidden_states", lambda data: logits)
    monkeypatch.setattr(model.embedding, "logits", lambda hidden: hidden)


def test_a_model_that_knows_nothing_loses_the_log_of_the_vocabulary(model):
    with torch.no_grad():
        model.embedding.weight.zero_()  # all logits are zero
    assert model(batch([[6], [7, 8, 7]], 8)).item() == pytest.approx(math.log(VOCAB), abs=1e-6)


def test_the_loss_is_a_mean_of_means_and_counts_eos(model, monkeypatch):
    # Logits that say token k with weight k, whatever came before: log p(k) = k - log sum(exp).
    steps = torch.arange(VOCAB).float()
    say(steps.expand(2, 8, VOCAB), model, monkeypatch)
    normaliser = steps.exp().sum().log().item()
    short, long = [6], [7, 8, 3]
    means = [sum([*answer, EOS]) / (len(answer) + 1) for answer in (short, long)]
    expected = normaliser - sum(means) / 2
    by_token = normaliser - sum([*short, EOS, *long, EOS]) / 6
    assert abs(expected - by_token) > 0.1, "both kinds of mean must differ"
    assert model(batch([short, long], 8)).item() == pytest.approx(expected, abs=1e-5)


def test_more_padding_does_not_change_the_loss(model):
    answers = [[6, 7], [8]]
    torch.testing.assert_close(model(batch(answers, 12)), model(batch(answers, 6)))


def test_a_row_without_an_answer_counts_as_zero(model):
    both = batch([[6, 7], [8]], 6)
    suffix = both.suffix.clone()
    suffix[1] = False
    alone = batch([[6, 7]], 6)
    torch.testing.assert_close(model(dataclasses.replace(both, suffix=suffix)), model(alone) / 2)


def test_only_the_positions_before_answer_tokens_are_trained(model, monkeypatch):
    data = batch([[6, 7], [8]], 7)
    logits = torch.randn(2, 7, VOCAB, requires_grad=True)
    say(logits, model, monkeypatch)
    model(data).backward()
    assert logits.grad is not None
    trained = logits.grad.abs().sum(-1) > 0
    # the newline at 2 says the first answer token, the last answer token says EOS
    assert trained.int().tolist() == [[0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0]]


SMOOTHED = np.load(Path(__file__).parents[1] / "golden/schedules/label_smoothing.npz")


@pytest.mark.parametrize("smoothing", ["0", "0.1", "0.3"])
def test_smoothed_losses_are_big_visions(smoothing, model, monkeypatch):
    """Per example, of its PaliGemma trainer: ε / (V − 1) for each of the other tokens."""
    logits, text = torch.from_numpy(SMOOTHED["logits"]), torch.from_numpy(SMOOTHED["text"]).long()
    counted = torch.from_numpy(SMOOTHED["mask_loss"]).bool()
    say(torch.nn.functional.pad(logits, (0, 0, 0, 1)), model, monkeypatch)
    data = dataclasses.replace(
        batch([[6], [7]], text.shape[1]),
        tokens=text,
        token_valid=torch.ones_like(counted),
        suffix=counted,
    )
    expected = SMOOTHED[f"per_example_ls{smoothing}"].mean()
    assert model(data, torch.tensor(float(smoothing))).item() == pytest.approx(expected, rel=1e-5)
    if smoothing == "0":
        assert model(data).item() == pytest.approx(expected, rel=1e-5)


def test_only_tokens_that_are_marked_count(model, monkeypatch):
    data = batch([[6, 7], [8]], 7)
    logits = torch.randn(2, 7, VOCAB, requires_grad=True)
    say(logits, model, monkeypatch)
    model(dataclasses.replace(data, counted=data.tokens == EOS)).backward()
    assert logits.grad is not None
    trained = logits.grad.abs().sum(-1) > 0
    assert trained.int().tolist() == [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0]]


def test_logits_of_all_tokens_give_the_same_loss(model, monkeypatch):
    """As a card computes them, whose host doesn't know how many are learned."""
    torch.nn.init.normal_(model.projector.weight)
    data, smoothing = batch([[6, 7], [8]], 9), torch.tensor(0.1)
    few = model(data, smoothing)
    expected = torch.autograd.grad(few, list(model.parameters()))
    monkeypatch.setattr("backbone.paligemma._places", lambda wanted: slice(None))
    every = model(data, smoothing)
    torch.testing.assert_close(every, few)
    torch.testing.assert_close(torch.autograd.grad(every, list(model.parameters())), expected)


def test_what_the_last_block_skips_changes_nothing(model):
    torch.nn.init.normal_(model.projector.weight)
    data = batch([[6, 7], [8]], 9)
    data = dataclasses.replace(data, images=torch.rand_like(data.images))
    x, valid = model.embed_prefix(data.images, data.image_valid, data.tokens, data.token_valid)
    block = prefix_lm(x.shape[1] - 9, data.suffix)
    whole, cache = model.language(x, block, valid)
    few, same = model.language(x, block, valid, wanted=4)
    torch.testing.assert_close(few, whole[:, -4:])
    torch.testing.assert_close(same.k, cache.k)
    torch.testing.assert_close(model.hidden_states(data), whole[:, -9:])
