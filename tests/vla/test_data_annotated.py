"""JSONL annotations: what is read, and how each fault is told with its line."""

import json

import numpy as np
import pytest
from PIL import Image

from vla.data.annotated import read_annotated


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:10, 2:8] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:5]).save(tmp_path / "small.png")
    (tmp_path / "no_picture.txt").write_text("words")
    return tmp_path


def write(folder, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "data.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return folder


def test_all_fields_are_read(folder):
    box = {"label": "cat", "box": [1, 2, 30, 20], "mask": "mask.png"}
    write(
        folder,
        {"image": "a.png", "suffix": "one\u2028line"},
        "",
        {"images": ["a.png", "b.png"], "question": "same?", "suffixes": ["no", "nope"]},
        {"image": "b.png", "prefix": "detect cat", "objects": [box], "group": "g", "set": "s"},
    )
    first, second, third = read_annotated(folder)
    assert (first.suffixes, first.prefix, first.question, first.objects) == (
        ("one\u2028line",),
        None,
        None,
        (),
    )
    assert second.images == (folder / "a.png", folder / "b.png")
    assert (second.question, second.suffixes, second.size) == ("same?", ("no", "nope"), (30, 20))
    assert second.where == f"{folder / 'data.jsonl'}:3"
    assert (third.prefix, third.group, third.set) == ("detect cat", "g", "s")
    (found,) = third.objects
    assert (found.label, found.box, found.crowd) == ("cat", (1.0, 2.0, 30.0, 20.0), False)
    assert found.read_mask().sum() == 5 * 6
    assert read_annotated(folder / "data.jsonl") == (first, second, third)


def test_pictures_are_rgb_whatever_the_file_is(folder):
    write(folder, {"images": ["mask.png", "a.png"], "suffix": "x"})
    grey, colour = read_annotated(folder)[0].read_images()
    assert grey.shape == colour.shape == (20, 30, 3)
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(colour, np.asarray(Image.open(folder / "a.png")))


BOX = {"label": "cat", "box": [1, 2, 3, 4]}
FAULTS = {
    "not json": ("{", "expected a JSON object on one line"),
    "a list": ("[1]", "expected a JSON object, got"),
    "twice": ('{"image": "a.png", "image": "b.png"}', "'image' is given twice"),
    "misspelt": ({"image": "a.png", "sufix": "x"}, "unknown field 'sufix', did you mean 'suffix'"),
    "unknown": ({"image": "a.png", "zzz": 1}, "unknown field 'zzz', known are image, images"),
    "no image": ({"suffix": "x"}, 'expected "image", "images" or "video", got suffix'),
    "both images": ({"image": "a.png", "images": ["b.png"]}, '"image" or "images", got both'),
    "no images": ({"images": [], "suffix": "x"}, "a list of texts, at least one"),
    "missing": ({"image": "c.png", "suffix": "x"}, "no picture at .*c.png"),
    "no picture": ({"image": "no_picture.txt", "suffix": "x"}, "isn't a picture"),
    "no answer": ({"image": "a.png"}, 'expected "suffix", "suffixes", "captions"'),
    "number": ({"image": "a.png", "suffix": 3}, 'expected a text as "suffix", got 3'),
    "text": ({"image": "a.png", "suffixes": "x"}, 'a list of texts, .* as "suffixes", got \'x\''),
    "group": ({"image": "a.png", "suffix": "x", "group": 1}, 'expected a text as "group", got 1'),
    "prompts": (
        {"image": "a.png", "suffix": "x", "prefix": "p", "question": "q"},
        'expected "prefix" .* or "question", got both',
    ),
    "objects": ({"image": "a.png", "objects": BOX}, 'expected a list of objects as "objects"'),
    "label": ({"image": "a.png", "objects": [{"box": [1, 2, 3, 4]}]}, 'object 0: .* as "label"'),
    "field": ({"image": "a.png", "objects": [{**BOX, "bbox": 1}]}, "0: unknown field 'bbox'"),
    "three": ({"image": "a.png", "objects": [{**BOX, "box": [1, 2, 3]}]}, "four numbers"),
    "bool": ({"image": "a.png", "objects": [{**BOX, "box": [1, 2, 3, True]}]}, "four numbers"),
    "outside": ({"image": "a.png", "objects": [BOX, {**BOX, "box": [1, 2, 31, 4]}]}, "object 1: .*"
                "inside of the picture's 30 × 20"),
    "turned": ({"image": "a.png", "objects": [{**BOX, "box": [5, 2, 3, 4]}]}, "inside of"),
    "nan": ('{"image": "a.png", "objects": [{"label": "x", "box": [0, 0, NaN, 4]}]}', "inside"),
    "mask": ({"image": "a.png", "objects": [{**BOX, "mask": "small.png"}]}, "mask of .30, 20. pix"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_file_and_line(folder, fault):
    line, message = FAULTS[fault]
    write(folder, {"image": "a.png", "suffix": "fine"}, line)
    with pytest.raises(ValueError, match=rf"data\.jsonl:2: .*{message}"):
        read_annotated(folder)


def test_a_folder_needs_exactly_one_file_with_something_in_it(folder):
    with pytest.raises(ValueError, match=r"expected one \.jsonl file in .* found none"):
        read_annotated(folder)
    write(folder, "", " ")
    with pytest.raises(ValueError, match="at least one line"):
        read_annotated(folder)
    (folder / "other.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"found data\.jsonl, other\.jsonl"):
        read_annotated(folder)
    (folder / "data.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected UTF-8 text"):
        read_annotated(folder / "data.jsonl")
