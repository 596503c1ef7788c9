"""Every kind of source gives the same examples by number, and tells its faults by name."""

import json
import os

import numpy as np
import pytest
import sources

from vla.data.image_text.hugging_face import HuggingFace
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.tars import Tars

RENAMED = (("suffixes", "texts"),)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path_factory):
    import datasets
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache)
    datasets.disable_progress_bars()


@pytest.mark.parametrize("kind", ["jsonl", "tars", "parquet", "streamed", "folder"])
def test_sources_give_the_same_examples_by_their_number(kind, tmp_path):
    root = tmp_path / "data"
    match kind:
        case "jsonl":
            opened = Jsonl(sources.jsonl(root)).open()
        case "tars":
            opened = Tars((sources.tars(root),)).open()
        case "folder":
            path = str(sources.image_folder(root))
            opened = HuggingFace(path, fields=(("suffix", "text"),)).open()
        case _:
            path = str(sources.parquet(tmp_path / "data.parquet"))
            streaming = kind == "streamed"
            opened = HuggingFace(path, fields=RENAMED, streaming=streaming, window=5).open()
    assert len(opened) == sources.COUNT
    for i in (3, 0, 11, 4, 4, 6, 5, 0):
        example = opened[i]
        np.testing.assert_array_equal(example.pictures[0], sources.picture(i))
        assert example.suffixes[0] == f"number {i}"
        if kind in ("jsonl", "tars"):
            assert example.things[0].box == (0, 0, 30, 20)
            assert example.size == (20, 30)


def test_a_tar_is_looked_through_once(tmp_path, monkeypatch):
    folder = sources.tars(tmp_path / "data")
    Tars((folder,)).open()
    monkeypatch.setattr("tarfile.open", None)
    again = Tars((folder,)).open()
    np.testing.assert_array_equal(again[7].pictures[0], sources.picture(7))


def test_a_tar_that_was_changed_is_looked_through_again(tmp_path):
    members = {"a.png": sources.png(sources.picture(1)), "a.txt": b"one\n"}
    path = sources.tar(tmp_path / "a.tar", members)
    assert len(Tars((path,)).open()) == 1
    sources.tar(path, members | {"b.png": sources.png(sources.picture(2)), "b.txt": b"two"})
    os.utime(path, ns=(1, 1))
    opened = Tars((path,)).open()
    assert [opened[i].suffixes for i in range(len(opened))] == [("one",), ("two",)]


def test_pictures_of_one_example_are_told_from_its_masks(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 3:9] = 255
    thing = {"label": "x", "box": [3, 2, 9, 5], "mask": "x.png"}
    path = sources.tar(
        tmp_path / "a.tar",
        {
            "a.0.png": sources.png(sources.picture(1)),
            "a.1.png": sources.png(sources.picture(2)),
            "a.x.png": sources.png(np.stack([mask] * 3, 2)),
            "a.json": json.dumps({"caption": "two", "objects": [thing], "url": "…"}).encode(),
        },
    )
    example = Tars((path,), fields=(("suffix", "caption"),)).open()[0]
    assert [p[0, 0, 0] for p in example.pictures] == [20, 40]
    assert example.things[0].read_mask is not None
    np.testing.assert_array_equal(example.things[0].read_mask(), mask > 0)


FAULTS = {
    "no picture": ({"a.txt": b"x"}, r"a\.tar: a has no picture, only txt"),
    "no text": ({"a.png": b"x"}, r"a\.tar: a has no text: expected a\.json or a\.txt"),
    "no json": ({"a.png": sources.png(sources.picture(1)), "a.json": b"["}, "a: expected a JSON"),
    "broken picture": ({"a.png": b"x", "a.txt": b"x"}, "a: a picture that Pillow can't read"),
    "box": (
        {
            "a.png": sources.png(sources.picture(1)),
            "a.json": b'{"objects": [{"label": "cat", "box": [0, 0, 31, 20]}]}',
        },
        "a: object 0: expected a box .* inside of the picture's 30 × 20",
    ),
    "language": (
        {"a.png": sources.png(sources.picture(1)), "a.json": b'{"captions": {"dee": "x"}}'},
        "a: unknown language 'dee'; did you mean 'de'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_the_tar_and_the_example(fault, tmp_path):
    members, message = FAULTS[fault]
    path = sources.tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message):
        Tars((path,)).open()[0]


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="is not a whole tar without compression"):
        Tars((tmp_path / "a.tar",)).open()
    with pytest.raises(FileNotFoundError, match="no tar at"):
        Tars((tmp_path / "b.tar",)).open()


def test_columns_splits_and_counts_that_do_not_fit_are_refused(tmp_path):
    path = str(sources.parquet(tmp_path / "data.parquet"))
    with pytest.raises(ValueError, match="has no column 'text'; it has image, texts"):
        HuggingFace(path, fields=(("suffixes", "text"),)).open()
    with pytest.raises(ValueError, match="unknown field 'sufix' in fields; did you mean 'suffix'"):
        HuggingFace(path, fields=(("sufix", "texts"),))
    folder = str(sources.image_folder(tmp_path / "folder"))
    with pytest.raises(ValueError, match="Unknown split"):
        HuggingFace(folder, split="val").open()
    with pytest.raises(FileNotFoundError, match="no parquet file"):
        HuggingFace(str(tmp_path / "no.parquet")).open()
    stream = HuggingFace(path, fields=RENAMED, streaming=True, window=8, count=14).open()
    with pytest.raises(ValueError, match="ended after 12 examples, count is 14"):
        stream[13]


def test_a_row_without_its_picture_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": {"bytes": sources.png(sources.picture(1)), "path": None}, "suffix": "a"}]
    pq.write_table(pa.Table.from_pylist([*rows, {"suffix": "b"}]), tmp_path / "d.parquet")
    opened = HuggingFace(str(tmp_path / "d.parquet")).open()
    with pytest.raises(ValueError, match="row 1: there is no picture"):
        opened[1]
