"""The VLM as people use it, with random weights at toy size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from backbone import VLM
from backbone.detections import Box
from backbone.findings import read_findings
from backbone.image import prepare
from backbone.mask_codec import CODEC, SMALL_MASK_CODEC, MaskCodec, paste
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, TextBatch
from backbone.pretrained import save_pretrained
from backbone.tokenizer import Tokenizer
from backbone.weights import save_weights

RNG = np.random.default_rng(1)


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


PICTURES = [picture(), picture(20, 30), picture(64, 64)]


@pytest.fixture(scope="module")
def vlm():
    """Says something different for each picture and prompt."""
    torch.manual_seed(0)
    model = PaliGemma(PALIGEMMA_TINY)
    torch.nn.init.normal_(model.projector.get_parameter("weight"), std=0.5)
    with torch.no_grad():
        for name, weight in model.language.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(15)  # else the last token is said again and again
    return VLM(model, Tokenizer.small())


def teacher_forced(vlm: VLM, images: list[np.ndarray], prompt: str, answer: list[int]):
    """Log-probabilities of an answer, read at once."""
    size = vlm.model.config.vision.resolution
    squares = np.stack([prepare(image, size, vlm.model.config.numerics.resize) for image in images])
    prefix = vlm.tokenizer.prefix(prompt)
    tokens = torch.tensor([[*prefix, *answer]])
    batch = TextBatch(
        torch.from_numpy(squares).permute(0, 3, 1, 2)[None],
        torch.ones(1, len(images), dtype=torch.bool),
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        (torch.arange(tokens.shape[1]) >= len(prefix))[None],
    )
    with torch.no_grad():
        logits = vlm.model.logits(batch)[0].log_softmax(-1)
    return logits[torch.arange(len(prefix) - 1, tokens.shape[1] - 1), answer]


def test_every_task_asks_in_paligemmas_words(vlm):
    image, short = PICTURES[0], {"max_new_tokens": 6}
    for said, prompt in (
        (vlm.caption(image, "de", **short), "caption de"),
        (vlm.describe(image, **short), "describe en"),
        (vlm.ocr(image, **short), "ocr"),
        (vlm.answer(image, "where is it?", **short), "answer en where is it?"),
        (vlm.detect(image, ["cat", "dog"], **short).text, "detect cat ; dog"),
    ):
        assert said == vlm.generate(image, prompt, **short)


def test_an_answer_carries_the_log_probability_of_each_of_its_tokens(vlm):
    [answer] = vlm.answers(PICTURES[0], "caption en", max_new_tokens=6)
    expected = teacher_forced(vlm, PICTURES[:1], "caption en", list(answer.tokens))
    assert np.allclose(answer.log_probs, expected, atol=1e-4)
    assert answer.score == pytest.approx(float(expected.sum()), abs=1e-3)


def test_a_list_of_pictures_gives_what_each_gives_alone(vlm):
    together = vlm.caption(PICTURES, max_new_tokens=6)
    assert together == [vlm.caption(image, max_new_tokens=6) for image in PICTURES]
    assert len(set(together)) > 1


def test_more_prompts_than_a_batch_holds_stay_in_order(vlm):
    many = [PICTURES[i % 3] for i in range(18)]
    said = vlm.caption(many, max_new_tokens=3)
    assert said == [said[i % 3] for i in range(18)]


def test_a_prompt_may_have_no_picture_one_or_many(vlm):
    groups = [[], PICTURES[0], PICTURES]
    prompts = ["caption en", "ocr", "answer en what changed?"]
    said = vlm.answers(groups, prompts, max_new_tokens=5)
    for group, prompt, answer in zip(groups, prompts, said, strict=True):
        [alone] = vlm.answers(group, prompt, max_new_tokens=5)
        assert alone.tokens == answer.tokens
        assert np.allclose(alone.log_probs, answer.log_probs, atol=1e-4)
        images = [group] if isinstance(group, np.ndarray) else group
        if images:
            expected = teacher_forced(vlm, images, prompt, list(answer.tokens))
            assert np.allclose(answer.log_probs, expected, atol=1e-4)


def test_an_array_and_a_pil_image_are_the_same_picture(vlm):
    as_pil = Image.fromarray(PICTURES[0])
    assert vlm.caption(as_pil, max_new_tokens=6) == vlm.caption(PICTURES[0], max_new_tokens=6)


def test_an_answer_goes_on_from_a_given_start(vlm):
    start = "a cup"
    [answer] = vlm.answers(PICTURES[0], "caption en", start=start, max_new_tokens=5)
    assert answer.text.startswith(start)
    given = vlm.tokenizer.encode(start)
    whole = teacher_forced(vlm, PICTURES[:1], "caption en", given + list(answer.tokens))
    assert np.allclose(answer.log_probs, whole[len(given) :], atol=1e-4)


@pytest.mark.parametrize("start", ["", "a 猫"])
def test_the_pieces_of_a_stream_are_the_whole_answer(vlm, start):
    pieces = list(vlm.stream(PICTURES[0], "caption en", start=start, max_new_tokens=20))
    assert len(pieces) > 1
    assert "".join(pieces) == vlm.generate(
        PICTURES[0], "caption en", start=start, max_new_tokens=20
    )


def test_a_character_of_many_bytes_is_streamed_whole(vlm):
    ids = [*vlm.tokenizer.encode("é猫🐈 ok"), vlm.tokenizer.eos]
    steps = (
        type("Step", (), {"tokens": torch.tensor([i]), "finished": torch.tensor([i == 1])})()
        for i in ids
    )
    pieces = list(vlm._pieces([], steps))
    assert "".join(pieces) == "é猫🐈 ok"
    assert not any("\ufffd" in piece for piece in pieces)


def test_boxes_are_in_pixels_of_the_picture_as_it_came(vlm):
    text = "<loc0000><loc0341><loc1023><loc0682> cat ; nonsense ; <loc0001> dog"
    found = read_findings(text, (50, 300))
    assert [thing.name for thing in found.things] == ["cat"]
    assert found.things[0].box == pytest.approx((100, 0, 200, 50))
    assert found.things[0].mask is None
    assert [piece.partition(":")[0] for piece in found.dropped] == [
        "'nonsense'",
        "'<loc0001> dog'",
    ]


def test_a_restricted_answer_holds_only_what_was_asked_for(vlm):
    found = vlm.detect(PICTURES, ["cup", "red spoon"], restrict=True, max_new_tokens=40)
    for one in found:
        assert {thing.name for thing in one.things} <= {"cup", "red spoon", ""}


def test_segment_pastes_the_codecs_mask_into_the_box():
    torch.manual_seed(2)
    codec = MaskCodec(SMALL_MASK_CODEC)
    codes = [3, 99, 0, 127] * 4
    text = "<loc0100><loc0200><loc0900><loc0800>" + "".join(f"<seg{c:03d}>" for c in codes) + " cup"
    found = read_findings(text, (120, 80), codec)
    with torch.no_grad():
        small = codec.decode(torch.tensor([codes]))[0].numpy()
    box = read_findings(text, (1023, 1023)).things[0].box
    assert box == pytest.approx((200, 100, 800, 900))
    expected = paste(small, Box.from_bins((100, 200, 900, 800)), (120, 80))
    assert found.things[0].mask is not None
    assert np.array_equal(found.things[0].mask, expected)


def test_a_codec_beside_the_weights_comes_along(vlm, tmp_path):
    save_pretrained(vlm.model, vlm.tokenizer, tmp_path)
    assert VLM.from_pretrained(tmp_path).codec is None
    codec = MaskCodec(SMALL_MASK_CODEC)
    save_weights(codec, tmp_path / CODEC)
    loaded = VLM.from_pretrained(tmp_path, dtype="float32")
    assert loaded.codec is not None
    with_codec = VLM(vlm.model, vlm.tokenizer, codec)
    options = {"restrict": True, "max_new_tokens": 30}
    ours, theirs = (v.segment(PICTURES[0], ["cup"], **options) for v in (loaded, with_codec))
    assert ours.text == theirs.text
    (thing, *_), (expected, *_) = ours.things, theirs.things
    assert thing.mask is not None
    assert expected.mask is not None
    assert np.array_equal(thing.mask, expected.mask)


def test_segment_says_that_it_needs_a_codec(vlm):
    with pytest.raises(ValueError, match=r"segment needs a mask codec; set vlm\.codec"):
        vlm.segment(PICTURES[0], ["cup"])
    able = VLM(vlm.model, vlm.tokenizer, MaskCodec(SMALL_MASK_CODEC))
    found = able.segment(PICTURES[0], ["cup"], restrict=True, max_new_tokens=60)
    assert all(thing.mask is None or thing.mask.shape == (40, 60) for thing in found.things)


def test_a_model_with_more_rows_than_tokens_says_only_tokens():
    """Hugging Face's tables have 64 rows that stand for nothing."""
    torch.manual_seed(1)
    config = PaliGemma(PALIGEMMA_TINY).config
    model = PaliGemma(replace(config, vocab=config.vocab + 64))
    with torch.no_grad():
        model.embedding.weight[-64:] *= 50
    wide = VLM(model, Tokenizer.small())
    [answer] = wide.answers(PICTURES[0], "ocr", max_new_tokens=5)
    assert max(answer.tokens) < config.vocab
    assert wide.detect(PICTURES[0], ["cup"], restrict=True, max_new_tokens=5).text is not None


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda v: v.caption("cat.png"), "expected a uint8 RGB array .* got str"),
        (lambda v: v.caption([PICTURES[0], 3]), "got a list that holds int"),
        (lambda v: v.caption(PICTURES[0] / 255), "got float64"),
        (lambda v: v.caption(PICTURES[0][..., 0]), r"got shape \[40, 60\]"),
        (lambda v: v.caption(np.stack([PICTURES[0]] * 2)), "give one picture at a time"),
        (lambda v: v.caption(PICTURES[0], "xx"), "unknown language 'xx'"),
        (lambda v: v.answer(PICTURES[0], "  "), "the question is empty"),
        (lambda v: v.detect(PICTURES[0], "cup"), "expected a list of names"),
        (lambda v: v.detect(PICTURES[0], ["a;b"]), "holds ';'"),
        (lambda v: v.generate(PICTURES[0], ["a", "b"]), "2 prompts need a list of as many"),
        (lambda v: v.generate(PICTURES[0], 3), "expected a prompt or a list of prompts, got 3"),
        (lambda v: v.stream(PICTURES[0], "ocr", beams=2), "can't be streamed"),
        (lambda v: v.generate(PICTURES[0], "ocr", top_p=2.0, temperature=1.0), "top_p is 2.0"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(vlm, ask, message):
    with pytest.raises(ValueError, match=message) as raised:
        ask(vlm)
    assert "\n" not in str(raised.value)


def test_a_folder_gives_the_same_answers(vlm, tmp_path):
    save_pretrained(vlm.model, vlm.tokenizer, tmp_path)
    again = VLM.from_pretrained(tmp_path, dtype="float32")
    assert again.caption(PICTURES[0]) == vlm.caption(PICTURES[0])


def test_findings_are_read_from_anything():
    rng = np.random.default_rng(0)
    parts = ["<loc0001>", "<loc1023>", "<loc9999>", "<seg000>", "<seg999>", " ; ", "cat", "\n"]
    parts += ["<eos>", "<", "é", "\x00", "<loc", ";;", " ", "\ufffd"]
    codec = MaskCodec(SMALL_MASK_CODEC)
    boxes = 0
    for _ in range(300):
        text = "".join(rng.choice(parts, rng.integers(0, 30)))
        if rng.random() < 0.5:
            text += "<loc0001>" * 2 + "<loc0900>" * 2 + "<seg003>" * int(rng.integers(14, 19))
        found = read_findings(text, (int(rng.integers(1, 30)), 9), codec)
        boxes += sum(thing.mask is not None for thing in found.things)
        assert found.text == text
    assert boxes > 10
