"""PaliGemma's grammar, example by example; what is random follows from the seed alone."""

import re
from collections import Counter

import numpy as np
import pytest
import torch

from backbone.detections import parse_detections
from backbone.mask_codec import SMALL_MASK_CODEC, MaskCodec
from backbone.tasks import LANGUAGES
from backbone.tokenizer import Tokenizer
from backbone.weights import save_weights
from vla.data.image_text.draw import Draw
from vla.data.image_text.example import ImageText, Thing
from vla.data.image_text.formats import (
    NOISE,
    Answer,
    Asked,
    Caption,
    Detect,
    ObjectQuestion,
    Ocr,
    Prefixed,
    Question,
    Refer,
    Region,
    Segment,
    named,
)
from vla.data.image_text.frames import Frames
from vla.data.text import TextExample, TextRoom, collate_text

PICTURE = (np.zeros((100, 200, 3), np.uint8),)


def shown(**fields) -> ImageText:
    return ImageText(PICTURE, "data:1", **fields)


def things(*labels: str) -> tuple[Thing, ...]:
    return tuple(Thing(name, (10 * i, 0, 10 * i + 10, 50)) for i, name in enumerate(labels))


def draw(epoch: int = 0, index: int = 0, room: TextRoom | None = None) -> Draw:
    return Draw.at(3, index, 10, epoch, room)


def test_captions_ask_in_every_language_of_the_grammar():
    assert len(LANGUAGES) == 36
    for lang in LANGUAGES:
        asked = Caption()(shown(captions={lang: ("x",)}), draw())
        assert asked == Asked(f"caption {lang}", "x")
    with pytest.raises(ValueError, match=r"unknown language 'jp'; did you mean"):
        Caption(langs=("jp",))
    with pytest.raises(ValueError, match="data:1: no caption in de"):
        Caption(langs=("de",))(shown(captions={"fr": ("x",)}), draw())
    assert Caption(word="describe")(shown(suffixes=("x",)), draw()).prompt == "describe en"


def test_every_language_and_every_caption_is_taken_once_before_any_comes_again():
    captions = {"en": ("a", "b"), "de": ("c", "d"), "fr": ("e", "f")}
    example = shown(captions=captions)
    taken = [Caption()(example, draw(epoch)) for epoch in range(12)]
    for half in (taken[:6], taken[6:]):
        assert Counter(a.answer for a in half) == Counter("abcdef")
    assert {a.prompt for a in taken[:3]} == {"caption en", "caption de", "caption fr"}


def test_of_several_answers_each_epoch_takes_another_one():
    example = shown(question="what?", suffixes=tuple("abcde"))
    for start in (0, 5, 10):
        taken = {Answer()(example, draw(start + k)).answer for k in range(5)}
        assert taken == set("abcde")
    orders = {
        "".join(Answer()(example, draw(k, index)).answer for k in range(5)) for index in range(10)
    }
    assert len(orders) > 5  # each example has an order of its own


def test_questions_and_prefixes():
    example = shown(prefix="my prompt", question="how many?", suffixes=("two",), lang="de")
    assert Answer()(example, draw()) == Asked("answer de how many?", "two")
    assert Question("fr")(example, draw()) == Asked("question fr two", "how many?")
    assert Prefixed()(example, draw()) == Asked("my prompt", "two")
    with pytest.raises(ValueError, match="data:1: this task needs question"):
        Answer()(shown(suffixes=("x",)), draw())


def test_a_template_makes_the_prompts_of_examples_that_bring_none():
    asked = Prefixed("answer en {question}", lower=True)
    example = shown(question="how many?", suffixes=("Two",))
    assert asked(example, draw()) == Asked("answer en how many?", "two")
    assert asked(shown(prefix="mine", suffixes=("x",)), draw()).prompt == "mine"
    labelled = shown(things=things("the left cat"), suffixes=("x",))
    assert Prefixed("{label}")(labelled, draw()).prompt == "the left cat"
    with pytest.raises(ValueError, match='data:1: expected "question", or "prefix"'):
        asked(labelled, draw())
    with pytest.raises(ValueError, match='data:1: expected one object, or "prefix"'):
        Prefixed("{label}")(example, draw())
    with pytest.raises(ValueError, match="data:1: this task needs prefix"):
        Prefixed()(example, draw())


def test_ocr_leaves_out_as_few_snippets_as_it_must():
    tokenizer = Tokenizer.small()
    snippets = tuple(f"line {chr(97 + i)}" for i in range(20))
    whole = Ocr()(shown(snippets=snippets), draw())
    assert whole == Asked("ocr", "\n".join(snippets))
    room = TextRoom(tokenizer, 40)
    kept = [Ocr()(shown(snippets=snippets), draw(k, room=room)).answer for k in range(30)]
    each = (len(tokenizer.encode(f"\n{s}")) for s in snippets)
    longest = max(each)
    for answer in kept:
        lines = answer.split("\n")
        assert lines == [s for s in snippets if s in lines]  # still row by row
        used = len(tokenizer.prefix("ocr")) + len(tokenizer.encode(answer, eos=True))
        assert 40 - longest < used <= 40
    counts = Counter(line for answer in kept for line in answer.split("\n"))
    assert set(counts) == set(snippets)  # which ones go is drawn


def test_detection_names_every_thing_in_random_or_given_order():
    example = shown(things=things("cat", "dog", "cat", "cow"))
    given = Detect(order="given")(example, draw())
    assert given.prompt == "detect cat ; dog ; cow"
    assert given.answer.startswith("<loc0000><loc0000><loc0512><loc0051> cat ; ")
    assert [d.name for d in parse_detections(given.answer).items] == ["cat", "dog", "cat", "cow"]
    orders = {Detect()(example, draw(k)).answer for k in range(40)}
    assert len(orders) > 10
    for answer in orders:
        assert Counter(d.name for d in parse_detections(answer).items) == Counter(
            cat=2, dog=1, cow=1
        )
    some = Detect(most=1)(example, draw())
    assert {d.name for d in parse_detections(some.answer).items} == {some.prompt.split()[1]}


def test_noise_boxes_fill_up_and_their_places_are_not_learned():
    tokenizer = Tokenizer.small()
    example = shown(things=things("cat", "dog"))
    asked = Detect(prompt="detect all classes", noise=6)(example, draw())
    assert asked.prompt == "detect all classes"
    assert asked.answer.count(f" {NOISE}") == 4
    assert [asked.answer[a:b].count("<loc") for a, b in asked.silent] == [4] * 4
    row = TextExample(np.zeros((1, 8, 8, 3), np.uint8), asked.prompt, asked.answer, asked.silent)
    batch = collate_text([row, TextExample(row.images, "a", "b")], tokenizer)
    assert batch.counted is not None
    whole = tokenizer.prefix(asked.prompt) + tokenizer.encode(asked.answer, eos=True)
    assert batch.tokens[0, : len(whole)].tolist() == whole  # pieces have the ids of the whole
    silent = (batch.suffix & ~batch.counted)[0]
    assert tokenizer.decode(batch.tokens[0][silent].tolist()) == "".join(
        asked.answer[a:b] for a, b in asked.silent
    )
    assert torch.equal(batch.counted[1], batch.suffix[1])


def test_segmentation_codes_the_mask_within_its_box(tmp_path):
    torch.manual_seed(0)
    codec = MaskCodec(SMALL_MASK_CODEC).eval()
    save_weights(codec, tmp_path / "mask_codec.safetensors")
    mask = np.zeros((100, 200), bool)
    mask[0:50, 0:10] = True
    thing = Thing("cat", (0, 0, 10, 50), lambda: mask)
    asked = Segment(tmp_path)(shown(things=(thing,)), draw())
    assert asked.prompt == "segment cat"
    [found] = parse_detections(asked.answer).items
    with torch.no_grad():
        codes = codec.encode(torch.ones(1, 64, 64))[0].tolist()
    assert found.codes == tuple(codes)
    with pytest.raises(ValueError, match="data:1: 'cat' has no mask to segment"):
        Segment(tmp_path)(shown(things=things("cat")), draw())


def test_what_is_referred_to_is_answered_with_its_place_and_mask_alone(tmp_path):
    torch.manual_seed(0)
    codec = MaskCodec(SMALL_MASK_CODEC).eval()
    save_weights(codec, tmp_path / "mask_codec.safetensors")
    mask = np.zeros((100, 200), bool)
    mask[0:50, 0:20] = True
    cats = [
        Thing("left cat", (0, 0, 10, 50), lambda: mask),
        Thing("right cat", (10, 0, 20, 50), lambda: mask),
    ]
    asked = [Refer(tmp_path)(shown(things=tuple(cats)), draw(k)) for k in range(2)]
    assert {a.prompt for a in asked} == {"left cat", "right cat"}
    assert all(re.fullmatch(r"(<loc\d{4}>){4}(<seg\d{3}>){16}", a.answer) for a in asked)
    with torch.no_grad():
        codes = codec.encode(torch.ones(1, 64, 64))[0].tolist()
    assert parse_detections(asked[0].answer).items[0].codes == tuple(codes)
    ready = shown(things=tuple(cats[:1]), suffixes=("<loc0001>",))
    assert Refer(tmp_path)(ready, draw()) == Asked("left cat", "<loc0001>")
    with pytest.raises(ValueError, match="data:1: 'cat' has no mask to segment"):
        Refer(tmp_path)(shown(things=things("cat")), draw())


def test_regions_take_turns():
    example = shown(things=things("cat", "dog", "cow"))
    asked = [Region()(example, draw(k)) for k in range(3)]
    assert {a.answer for a in asked} == {"cat", "dog", "cow"}
    assert all(re.fullmatch(r"caption (<loc\d{4}>){4}", a.prompt) for a in asked)


def test_object_questions_follow_openimages_templates():
    example = shown(things=things("cat", "dog", "cat"), absent=("cow", "owl", "bee"))
    seen = {}
    for k in range(80):
        asked = ObjectQuestion()(example, draw(k))
        seen[asked.prompt.removeprefix("answer en ")] = asked.answer
    assert seen["What objects are in the image?"] == "cat, dog"
    assert seen["Is cat in the image?"] == "yes"
    assert seen["Is cow in the image?"] == "no"
    assert (seen["How many cat?"], seen["How many dog?"]) == ("2", "1")
    which = {q: a for q, a in seen.items() if q.startswith("Which of")}
    assert all(sorted(a.split(", ")) == ["cat", "dog"] for a in which.values())
    assert all(sum(name in q for name in ("cow", "owl", "bee")) == 2 for q in which)


def test_films_are_sixteen_frames():
    assert Frames()(range(160)) == list(range(0, 160, 10))
    assert Frames(stride=3)(range(160)) == list(range(0, 48, 3))
    assert Frames(count=8)([0, 1, 2]) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_an_unknown_task_is_answered_with_the_nearest():
    assert named("ocr") == Ocr()
    with pytest.raises(ValueError, match="unknown task 'segmnt'; did you mean 'segment'"):
        named("segmnt")
