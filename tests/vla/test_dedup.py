"""Planted duplicates are found, and pictures that are only alike are not."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.pretrained import save_pretrained
from backbone.tokenizer import Tokenizer
from envs.tabletop.render import render
from envs.tabletop.scene import EASY, STANDARD, sample_scene
from vla.cli import main
from vla.data.duplicates import Prints, Search, distances, embeddings, groups, matches, prints
from vla.dedup import dedup

SCENES = 100


def scene(i: int) -> Image.Image:
    drawn = sample_scene(np.random.default_rng((7, i)), STANDARD if i % 2 else EASY)
    return Image.fromarray(render(drawn, "top", 96))


def blobs(i: int) -> Image.Image:
    """Smooth random pictures: a few frequencies in each colour."""
    rng = np.random.default_rng((8, i))
    y, x = np.mgrid[:80, :100] / 100
    picture = np.zeros((80, 100, 3))
    for _ in range(12):
        fx, fy, phase = rng.uniform(0, 20, 3)
        picture += np.sin(fx * x + fy * y + phase)[..., None] * rng.uniform(10, 30, 3)
    return Image.fromarray((128 + picture).clip(0, 255).astype(np.uint8))


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = rng.uniform(0.5, 1.5)
    return image.resize((round(image.width * factor), round(image.height * factor)))


def reencoded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=int(rng.integers(50, 90)))
    return Image.open(data).convert("RGB")


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    dx, dy = round(0.05 * image.width), round(0.05 * image.height)
    x, y = int(rng.integers(dx + 1)), int(rng.integers(dy + 1))
    return image.crop((x, y, x + image.width - dx, y + image.height - dy))


def recoloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) * rng.uniform(0.9, 1.1, 3) + rng.uniform(-8, 8, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


CHANGES = (resized, reencoded, cropped, recoloured)


def prints_of(images) -> Prints:
    return prints([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def originals():
    images = [scene(i) for i in range(SCENES)] + [blobs(i) for i in range(SCENES)]
    return images, prints_of(images)


@pytest.mark.parametrize("change", CHANGES)
def test_planted_duplicates_are_found_and_matched_with_their_originals(originals, change):
    images, known = originals
    rng = np.random.default_rng(0)
    found = matches(prints_of(change(image, rng) for image in images), known, Search())
    right = sum(m.ours == m.other for m in found)
    assert right >= 0.98 * len(images)


def test_distinct_pictures_are_not_flagged(originals):
    _, known = originals
    others = prints_of(
        [scene(i + 5000) for i in range(SCENES)] + [blobs(i + 5000) for i in range(SCENES)]
    )
    assert len(matches(others, known, Search())) <= 0.001 * len(others)


def test_distance_counts_bits_between_the_whole_and_any_crop():
    a = np.zeros((1, 10, 4), np.uint64)
    b = np.full((1, 10, 4), np.uint64(2**64 - 1))
    assert distances(a, b).item() == 256
    b[0, 3] = [1, 2, 7, 0]  # of a crop: 1 + 1 + 3 bits
    assert distances(a, b).item() == 5
    assert distances(b, a).item() == 5
    c = np.full((1, 10, 4), np.uint64(2**64 - 1))
    c[0, 4], b[0, 5] = 9, 9  # two crops alike do not count
    c[0, 0] = 0
    b[0, 1:] = np.uint64(2**64 - 1)
    c[0, 1:] = 0
    assert distances(c, b).item() == 256


def test_groups_join_what_is_near_what_is_near():
    known = prints_of([scene(1), cropped(scene(1), np.random.default_rng(0)), scene(2)])
    assert groups(known, Search()) == [0, 0, 2]


def test_thumbnails_and_a_model_decide_about_doubtful_pairs():
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (3, 10, 768), dtype=np.uint8)
    a = np.zeros((1, 10, 4), np.uint64)
    b = np.zeros((2, 10, 4), np.uint64)
    b[:, :, 0] = 2**50 - 1  # 50 bits
    ours, others = Prints(a, thumbs[:1]), Prints(b, thumbs[1:])
    assert matches(ours, others, Search()) == []
    [same] = matches(ours, Prints(b, thumbs[[1, 0]]), Search())
    assert (same.other, same.bits, round(same.likeness, 4)) == (1, 50, 1)
    assert matches(ours, Prints(b, thumbs[[1, 0]]), Search(doubtful=49)) == []
    asked = Prints(a, thumbs[:1], np.array([[1.0, 0]]))
    told = Prints(b, thumbs[1:], np.array([[-1.0, 0], [1.01, 0]]))
    [match] = matches(asked, told, Search())
    assert (match.other, match.cosine) == (1, pytest.approx(1))
    near = Prints(np.zeros((1, 10, 4), np.uint64), thumbs[1:2])
    assert matches(ours, near, Search()) == []  # equal hashes, other colours and shapes


def test_embeddings_are_the_means_over_patches_whatever_the_batch():
    model = PaliGemma(PALIGEMMA_TINY).eval()
    pictures = [np.asarray(blobs(i)) for i in range(35)]
    every = embeddings(model, pictures)
    assert every.shape == (35, 32)
    np.testing.assert_allclose(embeddings(model, pictures[33:34])[0], every[33], atol=1e-5)


def test_the_command_writes_a_report_and_what_is_left(tmp_path, capsys):
    rng = np.random.default_rng(1)
    for name in ("train", "eval", "tiny"):
        (tmp_path / name).mkdir()
    lines = []
    for i in range(8):
        scene(i).save(tmp_path / "train" / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "suffix": str(i)}))
    (tmp_path / "train/data.jsonl").write_text("\n".join(lines))
    cropped(scene(3), rng).save(tmp_path / "eval/a.jpg")
    scene(100).save(tmp_path / "eval/b.png")
    save_pretrained(PaliGemma(PALIGEMMA_TINY), Tokenizer.small(), tmp_path / "tiny")
    report = tmp_path / "report.json"
    words = ["dedup", str(tmp_path / "train"), "--against", str(tmp_path / "eval")]
    options = ["--model", str(tmp_path / "tiny"), "--report", str(report), "--cosine", "1"]
    with pytest.raises(SystemExit) as done:
        main([*words, *options, "--keep", str(tmp_path / "train/kept.jsonl")])
    assert done.value.code == 0
    saved = json.loads(report.read_text())
    [row] = saved["found"]
    assert row["train"].endswith("3.png")
    assert row["other"].endswith("a.jpg")
    assert -1 <= row["cosine"] <= 1
    kept = (tmp_path / "train/kept.jsonl").read_text().splitlines()
    assert kept == lines[:3] + lines[4:]
    assert "12.50 %" in capsys.readouterr().out


@pytest.mark.parametrize("progress", [True, False])
def test_sets_of_many_lots_are_looked_through_to_their_end(tmp_path, monkeypatch, progress):
    """It once stopped after the first lot, 256 pictures."""
    monkeypatch.setattr("vla.dedup.LOT", 3)
    for i in range(8):
        scene(i).save(tmp_path / f"{i}.png")
    report = dedup(tmp_path, [tmp_path], Search(), progress=progress)
    assert report.train[1] == report.against[0][1] == 8
    assert report.examples == tuple(range(8))


def test_what_is_no_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        dedup(tmp_path, [tmp_path / "none"], Search())
    with pytest.raises(ValueError, match="holds no pictures"):
        dedup(tmp_path, [tmp_path], Search())
    with pytest.raises(ValueError, match="expected 0 <= bits <= doubtful"):
        Search(bits=90)
