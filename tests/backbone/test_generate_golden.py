"""Greedy and beam search against the stored sequences of big_vision and of transformers 5.5.4."""

import big_vision_names
import hf_reference
import pytest
import torch
from safetensors.torch import load_file

from backbone.beams import beam_search
from backbone.gemma import soft_cap
from backbone.generate import generate
from backbone.paligemma import TextBatch


@pytest.fixture(scope="module", params=["big_vision_paligemma", "big_vision_paligemma2"])
def folder(request):
    return big_vision_names.GOLDEN / request.param


@pytest.fixture(scope="module")
def config(folder):
    return big_vision_names.read_config(folder)


@pytest.fixture(scope="module")
def model(folder):
    return big_vision_names.load(folder)


@pytest.fixture(scope="module")
def outputs(folder):
    return big_vision_names.read_arrays(folder / "outputs_f32.npz")


@pytest.fixture(scope="module")
def prompts(folder):
    """Rows of different lengths, padded on the right; some end in a part of the answer."""
    stored = big_vision_names.read_arrays(folder / "inputs.npz")
    images = stored["image"].permute(0, 3, 1, 2)[:, None]
    valid = stored["decode_mask_input"].bool()
    suffix = stored["decode_mask_ar"].bool() & valid
    assert suffix.any()
    ones = torch.ones(images.shape[:2], dtype=torch.bool)
    return TextBatch(images, ones, stored["decode_text"].long(), valid, suffix)


def test_greedy_tokens_and_their_log_probabilities_are_big_visions(model, prompts, outputs):
    said = generate(model, prompts, 12, eos=None)
    assert said.tokens.tolist() == outputs["decode_noeos_f32cache"].tolist()
    expected = outputs["decode_noeos_logp_f32cache"]
    assert (said.log_probs - expected).abs().max() < 1e-4


def test_greedy_tokens_up_to_eos_are_big_visions(model, prompts, outputs, config):
    """big_vision goes on after a row's EOS until all rows have one; ours pads."""
    eos = config["eos_token_for_decode"]
    said = generate(model, prompts, 12, eos=eos)
    theirs, log_probs = outputs["decode_f32cache"], outputs["decode_logp_f32cache"]
    assert eos in theirs
    for row, stored in enumerate(theirs.tolist()):
        length = stored.index(eos) + 1 if eos in stored else len(stored)
        ours = said.tokens[row].tolist()
        assert ours[:length] == stored[:length]
        assert not any(ours[length:])
        assert not said.log_probs[row, length:].any()
        distance = said.log_probs[row, :length] - log_probs[row, :length]
        assert distance.abs().max() < 1e-4


def test_beam_search_gives_big_visions_answers(model, prompts, outputs, config):
    eos, theirs = config["eos_token_for_decode"], outputs["beam3_f32cache"]
    said = beam_search(model, prompts, theirs.shape[1], 3, eos=eos)
    length = said.tokens.shape[1]
    for ours, stored in zip(said.tokens.tolist(), theirs.tolist(), strict=True):
        assert ours == stored[:length]
        assert not any(stored[length:])


def test_a_score_is_that_of_reading_the_answer_at_once(model, prompts, config):
    """The sum of log-probabilities of a beam's answer, teacher-forced, without a cache. As in
    big_vision, a soft cap holds for what follows a decoded token, not for the first one."""
    eos = config["eos_token_for_decode"]
    said = beam_search(model, prompts, 10, 3, eos=eos)
    for row in range(prompts.tokens.shape[0]):
        answer = said.tokens[row]
        answer = answer[: answer.tolist().index(eos) + 1]
        prompt = prompts.tokens[row][prompts.token_valid[row]]
        given = prompts.suffix[row][prompts.token_valid[row]]
        tokens = torch.cat([prompt, answer])[None]
        batch = TextBatch(
            prompts.images[row : row + 1],
            prompts.image_valid[row : row + 1],
            tokens,
            torch.ones_like(tokens, dtype=torch.bool),
            torch.cat([given, torch.ones_like(answer, dtype=torch.bool)])[None],
        )
        with torch.no_grad():
            logits = model.logits(batch)[0, prompt.shape[0] - 1 : -1]
        logits[1:] = soft_cap(logits[1:], model.config.language.logit_cap)
        log_probs = logits.log_softmax(-1).gather(1, answer[:, None])
        assert abs(log_probs.sum() - said.scores[row]) < 1e-4


@pytest.mark.parametrize(("name", "eos"), [("hf_paligemma", 120), ("hf_paligemma2", 79)])
def test_live_beams_are_hugging_faces_without_a_length_penalty(name, eos):
    """Its beams ran to 10 tokens and none ended: EOS was never among a step's best six, where
    alone it ends an answer there. So ours may end after ten tokens only."""
    sizes = hf_reference.TOY2 if name.endswith("2") else hf_reference.TOY
    path = big_vision_names.GOLDEN / name
    model = hf_reference.load(load_file(path / "model.safetensors"), sizes)
    stored = big_vision_names.read_arrays(path / "inputs.npz")
    outputs = big_vision_names.read_arrays(path / "outputs_f32.npz")
    theirs = outputs["gen/beam3_lp0_early0_sequences"]
    rows, text, valid = _without_pictures(stored)
    batch = TextBatch(
        stored["images"].permute(0, 3, 1, 2)[:, None],
        torch.ones(rows, 1, dtype=torch.bool),
        text,
        valid,
        torch.zeros_like(valid),
    )

    class EndsAfterTen:
        """A state counts the tokens."""

        def start(self, rows):
            return torch.zeros(rows, 1, dtype=torch.int64)

        def allowed(self, state):
            is_eos = torch.arange(sizes.vocab) == eos
            mask = is_eos == (state == 10)
            mask[:, hf_reference.IMAGE_TOKEN] = False  # after the softmax, as there
            return mask

        def advance(self, state, tokens):
            return state + 1

    found = beam_search(model, batch, 11, 3, eos=eos, allowed=EndsAfterTen())
    for i in range(rows):
        beam = theirs[i].tolist().index(found.tokens[i, :10].tolist())
        score = outputs["gen/beam3_lp0_early0_scores"][i, beam]
        assert abs(found.log_probs[i, :10].sum() - score) < 1e-3


def _without_pictures(stored):
    """(rows, text tokens, which are valid) of the stored prompts, padded on the left."""
    ids = stored["gen/input_ids"]
    text = ids != hf_reference.IMAGE_TOKEN
    rows = ids.shape[0]
    valid = stored["gen/attention_mask"].bool()
    return rows, ids[text].view(rows, -1), valid[text].view(rows, -1)
