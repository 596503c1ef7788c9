"""Boxes and mask codes to text and back; no text that a model may write is an error."""

import math
import re

import numpy as np
import pytest

from backbone.detections import (
    BIG_VISION,
    HUGGING_FACE,
    Box,
    Detection,
    Parsed,
    detection_answer,
    parse_detections,
)
from backbone.tokenizer import Tokenizer

CAT = "<loc0256><loc0102><loc0767><loc0920>"
CODES = tuple(range(0, 128, 8))
SEGS = "".join(f"<seg{c:03d}>" for c in CODES)
CAT_BOX = Box.from_bins((256, 102, 767, 920))


def test_a_box_is_written_y_first_and_rounded_to_1023_parts():
    box = Box(x0=0.1, y0=0.25, x1=0.9, y1=0.75)
    assert box.bins() == (256, 102, 767, 921)  # 255.75, 102.3, 767.25, 920.7
    assert box.text() == "<loc0256><loc0102><loc0767><loc0921>"
    assert box.bins(HUGGING_FACE) == (256, 102, 768, 922)
    assert Box(0.5, 0.5, 1.0, 1.0).bins() == (512, 512, 1023, 1023)  # 511.5 to even
    assert Box(-0.2, 0, 1.3, 1).bins() == (0, 0, 1023, 1023)


def test_the_two_conventions_read_the_far_edge_differently():
    far = (0, 0, 1023, 1023)
    assert Box.from_bins(far, BIG_VISION) == Box(0, 0, 1, 1)
    assert Box.from_bins(far, HUGGING_FACE) == Box(0, 0, 1023 / 1024, 1023 / 1024)
    text = "<loc0000><loc0000><loc1023><loc0512> cat"
    assert parse_detections(text).items[0].box == Box(0, 0, 512 / 1023, 1)
    assert parse_detections(text, HUGGING_FACE).items[0].box == Box(0, 0, 0.5, 1023 / 1024)


@pytest.mark.parametrize("scale", [BIG_VISION, HUGGING_FACE])
def test_every_bin_survives_the_way_through_a_box(scale):
    bins = np.arange(1024)
    boxes = [Box.from_bins((b, 1023 - b, 1023, 1023), scale) for b in bins.tolist()]
    assert [box.bins(scale)[:2] for box in boxes] == [(b, 1023 - b) for b in bins.tolist()]


def test_pixels_are_of_the_original_picture_x_first():
    box = Box(x0=0.25, y0=0.5, x1=0.75, y1=1.0)
    assert box.pixels((480, 640)) == (160.0, 240.0, 480.0, 480.0)
    assert Box.from_pixels(160, 240, 480, 480, (480, 640)) == box


def test_a_box_refuses_what_is_none():
    with pytest.raises(ValueError, match="x0 <= x1"):
        Box(0.5, 0, 0.4, 1)
    with pytest.raises(ValueError, match="four finite numbers"):
        Box(0, math.nan, 1, 1)
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        Box(0, 0, 1, 1).pixels((0, 5))
    with pytest.raises(ValueError, match=r"1023 \(BIG_VISION\) or 1024 .* got 1000"):
        Box(0, 0, 1, 1).bins(1000)
    with pytest.raises(ValueError, match="1023"):
        parse_detections("", 1000)
    with pytest.raises(ValueError, match="16 codes from 0 to 127"):
        Detection("cat", Box(0, 0, 1, 1), (1, 2))
    with pytest.raises(ValueError, match="16 codes from 0 to 127"):
        Detection("cat", Box(0, 0, 1, 1), (128,) * 16)


def test_answers_read_as_paligemma_writes_them():
    dog = Detection("dog", Box.from_bins((0, 1, 2, 3)), CODES)
    answer = detection_answer([Detection("cat", CAT_BOX), dog])
    assert answer == f"{CAT} cat ; <loc0000><loc0001><loc0002><loc0003>{SEGS} dog"
    assert parse_detections(answer) == Parsed((Detection("cat", CAT_BOX), dog), ())
    assert detection_answer([]) == ""
    assert detection_answer([Detection("", CAT_BOX, CODES)]) == f"{CAT}{SEGS}"
    with pytest.raises(ValueError, match="holds ';'"):
        detection_answer([Detection("a;b", CAT_BOX)])


@pytest.mark.parametrize(
    "text",
    [
        f"{CAT} cat",
        f"{CAT}cat",
        f"{CAT}  cat ; ",
        f"\n{CAT} cat\n",
        f" ; {CAT} cat ;",
        f"{CAT} cat<eos><pad> and more",
    ],
)
def test_a_box_and_its_name_are_found_however_they_are_spaced(text):
    assert parse_detections(text) == Parsed((Detection("cat", CAT_BOX),), ())


def test_names_and_separators_may_be_missing():
    assert parse_detections(f"{CAT} cat {CAT}{SEGS} dog").items == (
        Detection("cat", CAT_BOX),
        Detection("dog", CAT_BOX, CODES),
    )
    assert parse_detections(f"{CAT}{CAT} cat").items == (
        Detection("", CAT_BOX),
        Detection("cat", CAT_BOX),
    )
    assert parse_detections(f"{CAT} {SEGS}").items == (Detection("", CAT_BOX, CODES),)


@pytest.mark.parametrize(
    ("text", "kept", "why"),
    [
        ("no cat here", 0, "'no cat here': no <loc> before it"),
        ("<loc0001><loc0002><loc0003> cat", 0, "3> cat': 3 <loc> where 4 belong"),
        (f"{CAT}<loc0001> cat", 1, "'<loc0001> cat': 1 <loc> where 4 belong"),
        ("<loc0009><loc0000><loc0009><loc0005> cat", 0, "a box without extent"),
        ("<loc0000><loc0009><loc0009><loc0005> cat", 0, "a box without extent"),
        ("<loc0000><loc0000><loc1024><loc0005> cat", 0, "<loc1024> is beyond <loc1023>"),
        (f"{CAT}<seg001><seg002> cat", 1, "'<seg001><seg002>': 2 <seg> where 16 belong"),
        (f"{CAT}{SEGS}<seg001> cat", 1, "1 <seg> after the 16 of a mask"),
        (f"{CAT}{SEGS[:-8]}<seg128> cat", 1, "<seg128> is beyond <seg127>"),
        (f"hm {CAT} cat", 1, "'hm': no <loc> before it"),
        (f"{CAT} cat ; <loc000", 1, "'<loc000': no <loc> before it"),
        (f"{SEGS} cat", 0, "no <loc> before it"),
        (f"{CAT} cat\nand so on", 1, "'and so on': no <loc> before it"),
        (f"{CAT} cat ; <loc٠٠٠١>", 1, "no <loc> before it"),
    ],
)
def test_what_is_malformed_is_dropped_and_named(text, kept, why):
    parsed = parse_detections(text)
    assert len(parsed.items) == kept
    assert len(parsed.dropped) == 1
    assert why in parsed.dropped[0]


def test_a_box_keeps_its_name_where_its_mask_is_cut_short():
    (item,) = parse_detections(f"{CAT}{SEGS[:-8]} cat").items
    assert item == Detection("cat", CAT_BOX, None)
    (item,) = parse_detections(f"{CAT}{SEGS}<seg001> cat").items
    assert item == Detection("cat", CAT_BOX, CODES)


PIECES = [CAT, SEGS, "<loc0001>", "<loc0002>", "<loc1023>", "<loc9999>", "<seg000>", "<seg999>"]
PIECES += [" cat", " ; ", ";", "<", ">", "<loc", "0001>", "\n", " ", "<eos>", "<pad>", "é", "\0"]


def random_texts(count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield "".join(rng.choice(PIECES, rng.integers(0, 30)))


def test_no_text_is_an_error_and_what_comes_back_is_well_formed():
    found = 0
    for text in random_texts(4000, seed=0):
        parsed = parse_detections(text)
        found += len(parsed.items)
        for item in parsed.items:
            assert item.box.x0 < item.box.x1 <= 1
            assert item.box.y0 < item.box.y1 <= 1
            assert item.name == item.name.strip()
            assert not re.search("[;<>\n]", item.name)
        # What was well-formed is still so when it is written anew.
        assert parse_detections(detection_answer(parsed.items)) == Parsed(parsed.items, ())
    assert found > 1000


def test_no_sequence_of_tokens_is_an_error():
    tokenizer = Tokenizer.small()
    rng = np.random.default_rng(1)
    for _ in range(2000):
        ids = rng.integers(0, tokenizer.vocab_size, 40)
        ids = np.where(rng.random(40) < 0.5, tokenizer.loc(0) + rng.integers(0, 1024, 40), ids)
        parse_detections(tokenizer.decode(ids.tolist(), skip_special=False))


def test_well_formed_things_are_found_between_any_others():
    rng = np.random.default_rng(2)
    for text in random_texts(1000, seed=3):
        before = text.replace("<eos>", "").replace("<loc", "")
        wanted = Detection("red cup", CAT_BOX, CODES if rng.random() < 0.5 else None)
        assert parse_detections(f"{before} ; {detection_answer([wanted])}").items[-1:] == (wanted,)


def test_a_long_answer_is_read_in_linear_time():
    parsed = parse_detections(" " * 50_000 + "<loc0001>" * 50_001 + " " * 50_000 + "<seg001>" * 5)
    assert len(parsed.dropped) == 12_501
