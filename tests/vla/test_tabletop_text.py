"""Prompts and answers about tabletop scenes, their batches, and the model that learned them."""

import re

import numpy as np
import pytest
import torch

from backbone.paligemma import PALIGEMMA_TINY
from backbone.pretrained import load_pretrained, read_config
from backbone.tokenizer import Tokenizer
from vla.assets import PALIGEMMA_TABLETOP, PALIGEMMA_TABLETOP_FINE
from vla.data.tabletop_text import LOC_STEPS, TabletopText, located
from vla.data.text import TextExample, collate_text
from vla.training.text_job import TextConfig

LOC = re.compile(r"<loc(\d{4})>")


def test_an_example_is_a_function_of_seed_and_index():
    first, again = TabletopText(24, seed=3)[11], TabletopText(24, seed=3)[11]
    assert (first.prompt, first.answer) == (again.prompt, again.answer)
    assert np.array_equal(first.images, again.images)
    assert TabletopText(24, seed=4)[11].images.tobytes() != first.images.tobytes()


def test_boxes_are_written_as_the_middles_of_equal_parts():
    answer = located(["red square"], {"red square": (0.0, 0.25, 0.5, 1.0)})
    half = 1024 // LOC_STEPS // 2
    assert (
        answer == f"<loc{half:04d}><loc{256 + half:04d}><loc{512 + half:04d}><loc1016> red square"
    )


def test_what_a_camera_does_not_see_is_left_out_of_the_answer():
    assert located(["red square", "blue plate"], {"blue plate": (0, 0, 1, 1)}).endswith(
        "blue plate"
    )
    assert "red" not in located(["red square", "blue plate"], {"blue plate": (0, 0, 1, 1)})


def test_everything_in_a_scene_is_asked_for_once_with_two_coordinates():
    scenes = TabletopText(24, locate=1.0, standard=0.0, seed=1)
    for i in range(20):
        example = scenes[i]
        assert example.prompt == "locate everything"
        parts = example.answer.split(" ; ")
        names = [LOC.sub("", part) for part in parts]
        assert 3 <= len(parts) <= 5  # two or three objects, one or two plates
        assert len(set(names)) == len(names)
        assert all(len(LOC.findall(part)) == 2 for part in parts)


def test_an_instruction_is_answered_with_the_things_that_it_names():
    scenes = TabletopText(24, locate=0.0, standard=0.0, seed=2)
    asked = [scenes[i] for i in range(40)]
    instructions = [e for e in asked if not e.prompt.startswith(("detect", "answer", "caption"))]
    assert len(instructions) > 10
    for example in instructions:
        for part in example.answer.split(" ; "):
            name = LOC.sub("", part).strip()
            assert len(LOC.findall(part)) == 4
            assert name in example.prompt


def test_a_row_is_bos_prompt_newline_answer_eos_padding():
    tokenizer = Tokenizer.small()
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    rows = [
        TextExample(picture, "caption en", "red"),
        TextExample(picture, "detect red", "red red"),
    ]
    batch = collate_text(rows, tokenizer)
    head = [tokenizer.bos, *tokenizer.encode("caption en"), tokenizer.newline]
    tail = [*tokenizer.encode("red"), tokenizer.eos]
    row = batch.tokens[0].tolist()
    assert row[: len(head) + len(tail)] == head + tail
    assert set(row[len(head) + len(tail) :]) <= {tokenizer.pad}
    assert batch.suffix[0].nonzero()[:, 0].tolist() == [len(head) + k for k in range(len(tail))]
    assert batch.token_valid[0].sum() == len(head) + len(tail)
    assert batch.images.shape == (2, 1, 3, 8, 8)


def test_a_row_longer_than_the_length_is_cut_on_the_right():
    tokenizer = Tokenizer.small()
    example = TextExample(np.zeros((1, 8, 8, 3), np.uint8), "caption en", "red red red red")
    whole, cut = collate_text([example], tokenizer), collate_text([example], tokenizer, length=5)
    assert cut.tokens[0].tolist() == whole.tokens[0, :5].tolist()
    assert tokenizer.eos not in cut.tokens[0].tolist()


def test_pretraining_sees_easy_scenes_with_one_camera_first_and_everything_later(tmp_path):
    config = TextConfig(
        output_dir=tmp_path, steps=10, batch_size=2, model=PALIGEMMA_TINY, seeing=4, ramp=4
    )
    first, last, ninth = (config.scenes(step) for step in (0, 8, 9))
    assert isinstance(first, TabletopText)
    assert isinstance(last, TabletopText)
    assert isinstance(ninth, TabletopText)
    assert (first.cameras, first.locate, first.standard) == (("top",), 1.0, 0.0)
    assert last.cameras == ("top", "wrist")
    assert (last.locate, last.standard) == (pytest.approx(0.3), 0.5)
    assert ninth.cameras == ("top",)
    batch = config.job().batch(0)[0].inputs[0]
    again = config.job().batch(0)[0].inputs[0]
    assert torch.equal(batch.tokens, again.tokens)
    assert torch.equal(batch.images, again.images)


@pytest.mark.parametrize(
    ("folder", "standard"), [(PALIGEMMA_TABLETOP, 0.0), (PALIGEMMA_TABLETOP_FINE, 1.0)]
)
def test_the_shipped_models_find_what_instructions_name(folder, standard):
    model, tokenizer = load_pretrained(folder)
    size = read_config(folder).vision.resolution
    scenes = TabletopText(size, seed=123_456, locate=0.0, standard=standard)
    examples = [e for i in range(48) if "<loc" in (e := scenes[i]).answer]
    batch = collate_text(examples, tokenizer)
    with torch.no_grad():
        logits = model.logits(batch)[:, :-1]
    wanted, first = batch.tokens[:, 1:], tokenizer.loc(0)
    place = batch.suffix[:, 1:] & (wanted >= first) & (wanted < first + 1024)
    said = logits[..., first : first + 1024].argmax(-1) + first
    error = (said - wanted).abs()[place] / 1024  # of the table's side
    assert (error <= 0.04).float().mean() > 0.95
    assert error.mean() < 0.02


def test_micro_batches_hold_texts_of_like_length_and_give_the_same_gradient(tmp_path):
    common = {"output_dir": tmp_path, "steps": 9, "batch_size": 8, "model": PALIGEMMA_TINY}
    common |= {"seeing": 0, "ramp": 0, "cameras": ("top",)}
    whole, parted = TextConfig(**common).job(), TextConfig(**common, accumulate=2).job()
    (one,), two = whole.batch(3), parted.batch(3)
    lengths = [m.inputs[0].token_valid.sum(1) for m in two]
    assert [len(x) for x in lengths] == [4, 4]
    assert lengths[0].max() <= lengths[1].min()
    assert two[0].inputs[0].tokens.shape[1] < one.inputs[0].tokens.shape[1]
    assert sorted([*two[0].samples, *two[1].samples]) == sorted(one.samples)
    model = whole.begun()
    (model(*one.inputs)).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for m in two:
        (model(*m.inputs) / 2).backward()
    for name, gradient in expected.items():
        found = model.get_parameter(name).grad
        assert found is not None
        assert (found - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name
