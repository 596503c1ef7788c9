"""Tux Paint's package becomes a JSONL folder; captions are scored per language and split."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.pretrained import save_pretrained
from backbone.tokenizer import Tokenizer
from vla.data.annotated import read_annotated
from vla.data.stamps import PACKAGE, read_captions, split_groups, write_stamps
from vla.evaluation.caption_page import caption_words_of, score_captions, spread

DEBIAN = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@pytest.fixture(scope="module")
def deb(tmp_path_factory):
    """A package with ten stamps, of which two are alike, as Debian lays it out."""
    root = tmp_path_factory.mktemp("package")
    stamps = root / "files/usr/share/tuxpaint/stamps/animals"
    doc = root / "files/usr/share/doc" / PACKAGE
    for folder in (stamps, doc, root / "files/DEBIAN"):
        folder.mkdir(parents=True)
    (doc / "copyright").write_text("GPL-2")
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x.x>\nDescription: x\n"
    (root / "files/DEBIAN/control").write_text(control)
    for i in range(10):
        rng = np.random.default_rng(min(i, 8))  # the last two are the same picture
        pixels = rng.integers(0, 256, (12, 16, 4), dtype=np.uint8)
        pixels[:6, :, 3] = 0
        Image.fromarray(pixels).resize((160, 120)).save(stamps / f"s{i}.png")
        text = f"Animal {i}.\nde.utf8=Tier {i}.\nzh_CN.utf8=动物{i}\nnb.utf8=\n"
        (stamps / f"s{i}.txt").write_text(text, encoding="utf-8")
    file = root / "x.deb"
    command = ["dpkg-deb", "-b", str(root / "files"), str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return file


@DEBIAN
def test_stamps_become_two_splits_with_alike_ones_on_one_side(deb, tmp_path):
    counts = write_stamps(
        tmp_path / "d", ["en", "de", "zh", "no"], deb=deb, size=64, progress=False
    )
    assert counts == {"train": 8, "val": 2}
    sides = {name: read_annotated(tmp_path / f"d/{name}.jsonl") for name in counts}
    numbers = {n: {e.images[0].stem[-1] for e in side} for n, side in sides.items()}
    assert numbers["train"] | numbers["val"] == set("0123456789")
    assert len({"8", "9"} & numbers["val"]) != 1
    example = sides["train"][0]
    number = example.images[0].stem[-1]
    assert example.captions == {
        "en": (f"Animal {number}.",),
        "de": (f"Tier {number}.",),
        "zh": (f"动物{number}",),
    }
    assert example.size == (64, 48)
    assert (example.read_images()[0][2, 2] == 255).all()  # transparent is white
    assert (tmp_path / "d/copyright").read_text() == "GPL-2"
    with pytest.raises(FileExistsError, match="exists already"):
        write_stamps(tmp_path / "d", ["en"], deb=deb)


def test_faults_are_told(tmp_path):
    with pytest.raises(ValueError, match="unknown language 'germ'"):
        write_stamps(tmp_path / "d", ["germ"])
    with pytest.raises(FileNotFoundError, match="no package at"):
        write_stamps(tmp_path / "d", ["en"], deb=tmp_path / "none.deb")
    assert not (tmp_path / "d").exists()
    (tmp_path / "no.deb").write_text("x")
    if shutil.which("dpkg-deb"):
        with pytest.raises(ValueError, match=r"dpkg-deb .* failed"):
            write_stamps(tmp_path / "d", ["en"], deb=tmp_path / "no.deb")


APT = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *update*) [ {online} = yes ] || exit 0; touch {root}/known;;
  *download*) [ -f {root}/known ] || {{ echo "E: Unable to locate package" >&2; exit 100; }}
    cp {deb} .;;
esac
"""


@DEBIAN
@pytest.mark.parametrize("online", ["yes", "no"])
def test_lists_are_read_anew_where_apt_knows_no_such_package(online, deb, tmp_path, monkeypatch):
    """As on a fresh container, whose lists are deleted; with a stand-in for apt-get."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    script = APT.format(log=log, online=online, root=tmp_path, deb=deb)
    (tools / "apt-get").write_text(script)
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    if online == "no":
        with pytest.raises(ValueError, match=r"E: Unable to locate package\. It takes the network"):
            write_stamps(tmp_path / "d", ["en"], progress=False)
        assert not (tmp_path / "d").exists()
        return
    assert write_stamps(tmp_path / "d", ["en"], progress=False) == {"train": 8, "val": 2}
    calls = [line.split() for line in log.read_text().splitlines()]
    assert [c[-2:] if "download" in c else c[-1:] for c in calls] == [
        ["download", PACKAGE],
        ["update"],
        ["download", PACKAGE],
    ]
    assert any(word.startswith("-oDir::State::Lists=") for word in calls[1])


def test_captions_are_read_by_their_language(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("A cat.\nde.utf8=Eine Katze.\nfr.utf8=\nnote\n", encoding="utf-8")
    assert read_captions(file, ["de", "en", "fr"]) == {"de": "Eine Katze.", "en": "A cat."}


def test_what_is_scored_comes_from_all_over_a_split():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 200) == [0, 1, 2]
    assert spread([], 5) == []


def test_a_split_takes_whole_groups_and_no_more_than_its_share():
    group = [0, 0, 0, 3, 4, 5, 5, 7, 8, 9]
    for seed in range(20):
        chosen = split_groups(group, 0.3, seed)
        assert 0 < len(chosen) <= 3
        for i in chosen:
            assert {j for j, g in enumerate(group) if g == group[i]} <= chosen
    assert split_groups(group, 0.3, 1) == split_groups(group, 0.3, 1)


def test_languages_without_spaces_are_compared_by_characters():
    assert caption_words_of("ja", "赤い、犬。") == ["赤", "い", "犬"]
    assert caption_words_of("de", "Ein Hund.") == ["ein", "hund"]


def test_captions_are_scored_per_language_on_both_splits(tmp_path):
    for split in ("train", "val"):
        lines = []
        for i in range(3):
            Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(tmp_path / f"{split}{i}.png")
            captions = {"en": f"a {('red', 'dark', 'black')[i]} square", "ja": "赤い犬"}
            lines.append(json.dumps({"image": f"{split}{i}.png", "captions": captions}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    save_pretrained(PaliGemma(PALIGEMMA_TINY), Tokenizer.small(), tmp_path / "model")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0, "validation_loss": 2.5}\n'
    )
    table = score_captions(tmp_path, tmp_path / "model", tmp_path / "out", run=tmp_path)
    assert [line.split()[0] for line in table.splitlines()] == ["CIDEr-D", "en", "ja"]
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert {(s["split"], s["lang"], s["pictures"]) for s in scores} == {
        (split, lang, 3) for split in ("seen", "unseen") for lang in ("en", "ja")
    }
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("data:image/jpeg") == 6
    assert "<svg" in page
    with pytest.raises(ValueError, match=r"train\.jsonl has no captions in 'de'"):
        score_captions(tmp_path, tmp_path / "model", tmp_path / "out", langs=["de"])
