"""Sources in exact shares, each read whole before it is read again, and nothing to remember."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import sources
import torch
from PIL import Image

from backbone.detections import parse_detections
from backbone.mask_codec import SMALL_MASK_CODEC, MaskCodec
from backbone.paligemma import PALIGEMMA_TINY
from backbone.tokenizer import Tokenizer
from backbone.weights import save_weights
from vla.data.augment import Augment, Window
from vla.data.image_text.example import ImageText, Thing
from vla.data.image_text.formats import Caption, Detect, Refer, Segment
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import Mixture, MixtureData, Opened, Order, Part, Turns
from vla.data.text import TextExample, collate_text, cut_rows
from vla.training.sampler import sample_indices

MODEL = replace(PALIGEMMA_TINY, vision=replace(PALIGEMMA_TINY.vision, resolution=16))


@pytest.fixture
def folder(tmp_path):
    return sources.jsonl(tmp_path / "data")


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.2, 0.1), (1.0, 0.001), (3, 1 / 3, 0.1, 7)])
def test_shares_are_exact_in_the_long_run_and_every_example_comes_in_turn(weights):
    turns = Turns(weights, seed=5)
    total, count = sum(weights), 20 * turns.block
    seen = [turns.at(p) for p in range(count)]
    counts = Counter(source for source, _ in seen)
    for source, weight in enumerate(weights):
        assert abs(counts[source] - count * weight / total) <= 1 + 1e-6
        taken = [k for s, k in seen if s == source]
        assert sorted(taken) == list(range(len(taken)))  # none twice, none left out
        assert counts[source] == turns.counts(20)[source]


def test_a_position_says_everything_and_seeds_differ():
    turns, again = Turns((0.5, 0.3, 0.2), seed=1), Turns((0.5, 0.3, 0.2), seed=1)
    backwards = [turns.at(p) for p in reversed(range(5000))][::-1]
    assert [again.at(p) for p in range(5000)] == backwards
    other = Turns((0.5, 0.3, 0.2), seed=2)
    assert [other.at(p) for p in range(5000)] != backwards


def test_a_source_is_read_as_the_sampler_reads_a_dataset():
    order = Order(7, 13)
    assert [order.index(k) for k in range(40)] == sample_indices(7, range(40), 13)


def test_a_streamed_source_is_shuffled_within_its_windows():
    order = Order(7, 23, window=10)
    read = [order.index(k) for k in range(46)]
    for epoch in (read[:23], read[23:]):
        assert sorted(epoch[:10]) == list(range(10))
        assert sorted(epoch[20:]) == [20, 21, 22]
    assert read[:10] != sorted(read[:10])
    assert read[:23] != read[23:]


def test_an_epoch_shows_every_example_once_with_another_caption_each_time(folder):
    opened = Opened("captions", Jsonl(folder).open(), Caption())
    mixture = Mixture([opened], [1.0], 16)
    answers = [mixture[p].answer for p in range(2 * sources.COUNT)]
    assert len({a.split()[-1] for a in answers[: sources.COUNT]}) == sources.COUNT
    assert len(set(answers)) == 2 * sources.COUNT


def test_positions_are_pure_functions_with_random_preprocessing(folder):
    parts = (
        Part("captions", Jsonl(folder), Caption(), weight=3),
        Part("boxes", Jsonl(folder), Detect(), augment=Augment(crop=0)),
    )
    data = MixtureData(parts, augment=Augment())
    model = MODEL
    mixture, again = data.training(model, 4), data.training(model, 4)
    for p in (9, 3, 200, 3):
        a, b = mixture[p], again[p]
        np.testing.assert_array_equal(a.images, b.images)
        assert (a.prompt, a.answer, a.part, a.where) == (b.prompt, b.answer, b.part, b.where)
        assert a.images.shape == (1, 16, 16, 3)
    counts = Counter(mixture.place(p)[0] for p in range(1024))
    assert counts == {0: 768, 1: 256}
    heavier = MixtureData(parts, weights=(("captions", 0.0),)).training(model, 4)
    assert {heavier[p].part for p in range(30)} == {"boxes"}


def test_boxes_and_masks_follow_the_crop_of_their_picture(tmp_path):
    """A white rectangle in a black picture: wherever the crop puts it, the answer's box says so."""
    torch.manual_seed(0)
    codec = MaskCodec(SMALL_MASK_CODEC).eval()
    save_weights(codec, tmp_path / "mask_codec.safetensors")
    pixels = np.zeros((200, 240, 3), np.uint8)
    pixels[60:140, 96:156] = 255
    for name in ("picture", "mask"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    thing = {"label": "sheet", "box": [96, 60, 156, 140], "mask": "mask.png"}
    (tmp_path / "d.jsonl").write_text(json.dumps({"image": "picture.png", "objects": [thing]}))
    crop = Augment(crop=1, area=0.5, jpeg=0, resize=False)
    formats = (Detect(), Segment(tmp_path), Refer(tmp_path))
    parts = tuple(
        Part(type(f).__name__, Jsonl(tmp_path / "d.jsonl"), f, augment=crop) for f in formats
    )
    model = replace(MODEL, vision=replace(MODEL.vision, resolution=256))
    mixture = MixtureData(parts).training(model, 3)
    with torch.no_grad():
        full = tuple(codec.encode(torch.ones(1, 64, 64))[0].tolist())
    places = set()
    for p in range(60):
        row = mixture[p]
        [found] = parse_detections(row.answer).items
        ys, xs = np.nonzero(row.images[0, ..., 0] > 127)
        seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        np.testing.assert_allclose(found.box.pixels((256, 256)), seen, atol=1.5)
        assert found.codes == (None if row.part == "Detect" else full)
        places.add(found.box.bins())
    assert len(places) > 30


def test_what_a_crop_leaves_nothing_of_is_not_asked_for():
    corner, middle = Thing("corner", (0, 0, 5, 5)), Thing("middle", (40, 40, 60, 60))
    example = ImageText((np.zeros((100, 100, 3), np.uint8),), "data:1", things=(corner, middle))
    window = Window(10, 10, 80, 80)
    assert [t.label for t in example.cropped([window]).things] == ["middle"]
    alone = replace(example, things=(corner,)).cropped([window])
    assert (alone.size, alone.things) == ((100, 100), (corner,))  # else there were nothing to ask


def test_places_in_texts_cannot_follow_a_crop():
    picture = (np.zeros((10, 10, 3), np.uint8),)
    example = ImageText(picture, "data:1", suffixes=("<loc0001><loc0002> cat",))
    with pytest.raises(
        ValueError, match=r"data:1: a text holds <loc>, .* augment=Augment\(crop=0\)"
    ):
        example.cropped([Window(0, 0, 9, 9)])


def test_some_of_a_files_lines_are_drawn_by_a_seed(folder):
    def drawn(seed: int) -> list[str]:
        lines = Jsonl(folder, few=5, few_seed=seed).open()
        return [lines[i].where for i in range(len(lines))]

    assert len(drawn(0)) == 5
    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(6)}) > 1
    with pytest.raises(ValueError, match=r"few asks for 99 examples, .* has 12"):
        Jsonl(folder, few=99).open()
    with pytest.raises(ValueError, match="few is 0; give 1 example or more"):
        Jsonl(folder, few=0)


def test_weights_have_to_name_parts(folder):
    part = Part("captions", Jsonl(folder), Caption())
    with pytest.raises(ValueError, match="weights name no part 'caption'; there are captions"):
        MixtureData((part,), weights=(("caption", 1.0),))
    with pytest.raises(ValueError, match="two parts are named 'captions'"):
        MixtureData((part, part))
    with pytest.raises(ValueError, match="at least one source a weight above 0"):
        MixtureData((part,), weights=(("captions", 0.0),)).training(MODEL, 0)
    assert Part("captions", Jsonl(folder), "caption").ask == Caption()
    with pytest.raises(ValueError, match="unknown task 'captoin'; did you mean 'caption'"):
        Part("captions", Jsonl(folder), "captoin")
    with pytest.raises(ValueError, match="'segment' needs options; give the format itself"):
        Part("captions", Jsonl(folder), "segment")
    segment = Part("masks", Jsonl(folder), Segment(folder / "gone.npz"))
    with pytest.raises(FileNotFoundError, match=r"no mask codec at .*gone\.npz, which a part"):
        MixtureData((part, segment)).training(MODEL, 0)
    with pytest.raises(ValueError, match="the weight of 'captions' is -1"):
        Part("captions", Jsonl(folder), Caption(), weight=-1)


def test_rows_of_fewer_pictures_are_filled_with_absent_ones():
    one, two = np.ones((1, 8, 8, 3), np.uint8), np.full((2, 8, 8, 3), 2, np.uint8)
    batch = collate_text(
        [TextExample(one, "a", "b"), TextExample(two, "a", "b")], Tokenizer.small()
    )
    assert batch.image_valid.tolist() == [[True, False], [True, True]]
    assert batch.images.shape == (2, 2, 3, 8, 8)


def test_rows_that_are_cut_are_counted_by_their_part():
    tokenizer, image = Tokenizer.small(), np.zeros((1, 8, 8, 3), np.uint8)
    rows = [
        TextExample(image, "ocr", "a long text that is much longer than there is room", part="ocr"),
        TextExample(image, "ocr", "no", part="ocr"),
        TextExample(image, "caption en", "another long text of many words", part="captions"),
    ]
    batch = collate_text(rows, tokenizer, 10)
    assert cut_rows(rows, batch, tokenizer) == {"cut": 2.0, "cut/ocr": 1.0, "cut/captions": 1.0}
    ids = tokenizer.prefix("ocr") + tokenizer.encode(rows[0].answer)
    assert batch.tokens[0].tolist() == ids[:10]  # cut on the right, EOS lost, as in big_vision
