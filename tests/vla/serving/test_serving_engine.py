"""The small PaliGemma, asked by itself and in company."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backbone.detections import Box, Detection
from backbone.generate import greedy
from backbone.mask_codec import SMALL_MASK_CODEC, MaskCodec
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.tokenizer import Tokenizer
from backbone.vlm import VLM
from envs.tabletop.render import render
from envs.tabletop.scene import EASY, sample_scene
from vla.assets import PALIGEMMA_TABLETOP as MODEL
from vla.serving.engine import Engine
from vla.serving.findings import findings
from vla.serving.model import Ask, Token

PROMPTS = ("caption en", "answer en how many objects are there?", "detect red square ; blue plate")


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM.from_pretrained(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def engine(vlm) -> Engine:
    return Engine(vlm)


def scene(seed: int) -> np.ndarray:
    return render(sample_scene(np.random.default_rng(seed), EASY), "top", 72)


def ask(engine: Engine, number: int, prompt: str, pictures: int = 1, **fields) -> Ask:
    images = tuple(engine.prepare(scene(number + i)) for i in range(pictures))
    return Ask(prompt, images, **{"max_tokens": 64, **fields})


def answers(engine: Engine, asks, wanted=lambda i: True) -> list[list[Token]]:
    *rows, last = engine.decode(asks, wanted)
    assert list(last) == [None] * len(asks)
    columns = list(zip(*rows, strict=True))
    return [[token for token in column if token is not None] for column in columns]


def ids(tokens) -> list[int]:
    return [t.id for t in tokens]


def test_an_answer_is_that_of_greedy_decoding(vlm, engine):
    prompt = torch.tensor([vlm.tokenizer.prefix("caption en")])
    image = torch.from_numpy(scene(3)).permute(2, 0, 1)[None, None]
    ones = torch.ones_like(prompt, dtype=torch.bool)
    expected = greedy(vlm.model, image, torch.ones(1, 1, dtype=torch.bool), prompt, ones, 64)
    ((*tokens,),) = answers(engine, [ask(engine, 3, "caption en")])
    assert [*ids(tokens), vlm.tokenizer.eos] == expected[0].tolist()
    assert "plate" in engine.text(ids(tokens))


def test_company_changes_no_answer():
    engine = Engine(VLM.from_pretrained(MODEL, dtype="float32"))
    asks = [ask(engine, i, PROMPTS[i % 3], pictures=i % 4) for i in range(12)]
    alone = [ids(answers(engine, [a])[0]) for a in asks]
    assert [ids(tokens) for tokens in answers(engine, asks)] == alone
    assert len({tuple(a) for a in alone}) > 6


def test_a_seed_draws_the_same_alone_and_in_company(engine):
    drawn = ask(engine, 1, "caption en", temperature=1.5, seed=11)
    other = ask(engine, 2, "caption en", temperature=1.5, seed=12)
    (alone,) = answers(engine, [drawn])
    _, beside, _ = answers(engine, [other, drawn, ask(engine, 3, PROMPTS[1])])
    assert ids(alone) == ids(beside)
    another = ask(engine, 1, "caption en", temperature=1.5, seed=12)
    assert ids(answers(engine, [another])[0]) != ids(alone)


def test_a_tiny_nucleus_is_greedy(engine):
    greedy_ids = ids(answers(engine, [ask(engine, 1, "caption en")])[0])
    narrow = ask(engine, 1, "caption en", temperature=2, top_p=1e-6, seed=0)
    assert ids(answers(engine, [narrow])[0]) == greedy_ids


def test_log_probabilities_are_those_of_the_softmax(vlm, engine):
    (tokens,) = answers(engine, [ask(engine, 5, PROMPTS[1], alternatives=3)])
    first = tokens[0]
    prompt = torch.tensor([vlm.tokenizer.prefix(PROMPTS[1])])
    image = torch.from_numpy(scene(5)).permute(2, 0, 1)[None, None]
    ones = torch.ones_like(prompt, dtype=torch.bool)
    with torch.no_grad():
        hidden, _ = vlm.model.prefill(image, torch.ones(1, 1, dtype=torch.bool), prompt, ones)
        assert hidden is not None
        expected = vlm.model.embedding.logits(hidden[0, -1]).log_softmax(-1)
    assert first.logprob == pytest.approx(float(expected.max()), abs=1e-5)
    assert [p for _, p in first.likeliest] == pytest.approx(
        expected.topk(3).values.tolist(), abs=1e-5
    )
    assert first.likeliest[0] == (first.id, first.logprob)


def test_each_answer_ends_at_its_own_limit_or_when_it_is_not_wanted(engine):
    full = ids(answers(engine, [ask(engine, 0, "caption en")])[0])
    limits = [ask(engine, 0, "caption en", max_tokens=n) for n in (1, 4, 64, 64)]
    seen: list[int] = []

    def wanted(i: int) -> bool:
        seen.append(i)
        return i != 3 or seen.count(3) <= 2

    short = [ids(tokens) for tokens in answers(engine, limits, wanted)]
    assert short == [full[:1], full[:4], full, full[:2]]


def test_rows_of_the_table_that_stand_for_no_token_are_never_said():
    torch.manual_seed(0)
    tokenizer = Tokenizer.small()
    config = replace(PALIGEMMA_TINY, vocab=2 * tokenizer.vocab_size)
    engine = Engine(VLM(PaliGemma(config), tokenizer))
    image = engine.prepare(scene(0))
    drawn = [
        Ask("ocr", (image,), 40, temperature=2, seed=seed, alternatives=5) for seed in range(4)
    ]
    said = [token for tokens in answers(engine, drawn) for token in tokens]
    assert len(said) > 100
    assert all(token.id < tokenizer.vocab_size for token in said)
    assert all(i < tokenizer.vocab_size for token in said for i, _ in token.likeliest)


def test_pieces_of_tokens_add_up_to_the_text(engine, vlm):
    text = "a naïve ☃ 漢<loc0012><seg001>"
    tokens = vlm.tokenizer.encode(text)
    assert b"".join(map(engine.piece, tokens)).decode() == text


def test_masks_are_the_codecs_and_only_where_there_are_codes(vlm):
    torch.manual_seed(0)
    codec = MaskCodec(SMALL_MASK_CODEC)
    box, codes = Box(0, 0, 1, 1), (tuple(range(16)), tuple(range(100, 116)))
    found = [Detection("a", box, codes[0]), Detection("b", box), Detection("c", box, codes[1])]
    first, none, last = Engine(VLM(vlm.model, vlm.tokenizer, codec)).masks(found)
    with torch.no_grad():
        expected = codec.decode(torch.tensor(codes)).numpy()
    assert none is None
    assert first is not None
    assert last is not None
    np.testing.assert_allclose(np.stack([first, last]) / 255, expected, atol=0.5 / 255 + 1e-6)
    assert Engine(VLM(vlm.model, vlm.tokenizer)).masks(found) == [None] * 3


def test_detections_are_the_vlms_own(vlm, engine):
    names = ["red square", "blue plate"]
    (tokens,) = answers(engine, [ask(engine, 8, "detect red square ; blue plate")])
    expected = vlm.detect(scene(8), names)
    text = engine.text(ids(tokens))
    assert text == expected.text
    found = findings(text, [(72, 72)], engine.masks)["detections"]
    assert [d["name"] for d in found] == [t.name for t in expected.things] == names
    for mine, thing in zip(found, expected.things, strict=True):
        assert mine["box_pixels"] == pytest.approx(thing.box, abs=0.01)


def test_a_prompt_is_as_long_as_its_text_and_pictures(engine, vlm):
    two = ask(engine, 0, "caption en", pictures=2)
    assert engine.prompt_tokens(two) == len(vlm.tokenizer.prefix("caption en")) + 2 * 36


def test_tokens_that_are_spelt_out_are_no_control_tokens(vlm):
    tokens = vlm.tokenizer.prefix("<bos><eos><pad><image>")
    assert not {vlm.tokenizer.eos, vlm.tokenizer.pad, vlm.tokenizer.bos} & set(tokens[1:])
