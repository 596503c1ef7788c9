"""The VLM's commands, run in this process on the PaliGemma that ships with the package."""

import argparse
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from backbone.findings import Findings, Thing
from backbone.mask_codec import CODEC, SMALL_MASK_CODEC, MaskCodec
from backbone.precision import resolved
from backbone.vlm import VLM
from backbone.weights import save_weights
from envs.tabletop.render import render
from envs.tabletop.scene import EASY, sample_scene
from vla import cli
from vla.assets import PALIGEMMA_TABLETOP
from vla.drawing import COLOURS, draw_findings
from vla.vlm_commands import load

MODEL = ["--model", str(PALIGEMMA_TABLETOP), "--dtype", "float32"]
SCENES = [render(sample_scene(np.random.default_rng(i), EASY), "top", 144) for i in range(3)]


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "pictures"
    inside.mkdir()
    for i, scene in enumerate(SCENES):
        Image.fromarray(scene).save(inside / f"{i}.png")
    (inside / "notes.txt").write_text("no picture")
    return inside


@pytest.fixture(scope="module")
def vlm():
    return VLM.from_pretrained(PALIGEMMA_TABLETOP, dtype="float32")


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def type_in(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_one_picture_gives_the_bare_answer(folder, vlm, capsys):
    status, out, _ = run(["caption", str(folder / "1.png"), *MODEL], capsys)
    assert (status, out) == (0, vlm.caption(SCENES[1]) + "\n")


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_are_of_the_dtype_that_is_asked_for_or_suits_the_device(dtype):
    args = argparse.Namespace(model=PALIGEMMA_TABLETOP, device="cpu", dtype=dtype, compile=False)
    weights = {parameter.dtype for parameter in load(args).model.parameters()}
    assert weights == {getattr(torch, dtype or resolved("auto", "cpu"))}
    assert args.dtype == dtype or dtype is None


def test_a_folder_gives_a_line_per_picture_in_order(folder, vlm, capsys):
    status, out, _ = run(["caption", str(folder), "--batch", "2", *MODEL], capsys)
    expected = [f"{folder / f'{i}.png'}: {vlm.caption(SCENES[i])}" for i in range(3)]
    assert (status, out.splitlines()) == (0, expected)


def test_a_picture_comes_from_standard_input(folder, vlm, capsys, monkeypatch):
    type_in(monkeypatch, (folder / "2.png").read_bytes())
    status, out, _ = run(["caption", "-", "--json", "--beams", "3", *MODEL], capsys)
    assert status == 0
    assert json.loads(out) == {"image": "-", "text": vlm.caption(SCENES[2], beams=3)}


def test_a_question_comes_as_an_option_or_from_standard_input(folder, vlm, capsys, monkeypatch):
    question = "how many objects are there?"
    expected = vlm.answer(SCENES[0], question) + "\n"
    picture = str(folder / "0.png")
    assert run(["ask", picture, "-q", question, *MODEL], capsys)[1] == expected
    type_in(monkeypatch, f"{question}\n".encode())
    assert run(["ask", picture, *MODEL], capsys)[1] == expected
    assert run(["ask", picture, "--prompt", f"answer en {question}", *MODEL], capsys)[1] == expected


def test_one_question_goes_to_pictures_together(folder, vlm, capsys):
    paths = [str(folder / "0.png"), str(folder / "1.png")]
    _, out, _ = run(["ask", *paths, "--together", "--prompt", "locate everything", *MODEL], capsys)
    assert out == vlm.generate(SCENES[:2], "locate everything") + "\n"


def test_detect_prints_pixels_and_draws_the_boxes(folder, vlm, capsys, tmp_path):
    things, target = ["red square", "blue plate"], tmp_path / "drawn"
    arguments = ["detect", str(folder), "--json", "--out", str(target), *MODEL]
    status, out, _ = run([*arguments, "--things", *things], capsys)
    found = vlm.detect(SCENES, things)
    assert status == 0
    for line, expected, i in zip(out.splitlines(), found, range(3), strict=True):
        said = json.loads(line)
        assert [thing["name"] for thing in said["things"]] == [t.name for t in expected.things]
        boxes = [thing["box"] for thing in said["things"]]
        assert np.allclose(boxes, [t.box for t in expected.things], atol=0.2)
        assert said["saved"] == str(target / f"{i}.png")
        drawn = np.array(Image.open(target / f"{i}.png"))
        assert drawn.shape == SCENES[i].shape
        assert (drawn != SCENES[i]).any()
    assert sorted(p.name for p in target.iterdir()) == ["0.png", "1.png", "2.png"]


def test_segment_draws_with_the_codec_that_stands_beside_the_weights(folder, capsys, tmp_path):
    model = shutil.copytree(PALIGEMMA_TABLETOP, tmp_path / "model")
    torch.manual_seed(0)
    save_weights(MaskCodec(SMALL_MASK_CODEC), model / CODEC)
    picture = str(folder / "0.png")
    arguments = ["segment", picture, "--things", "red square", "--restrict", "--json"]
    status, out, _ = run([*arguments, "--model", str(model), "--dtype", "float32"], capsys)
    assert status == 0
    vlm = VLM.from_pretrained(model, dtype="float32")
    found = vlm.segment(SCENES[0], ["red square"], restrict=True)
    masks = [thing.mask for thing in found.things]
    counts = [None if mask is None else int(mask.sum()) for mask in masks]
    assert [thing["mask_pixels"] for thing in json.loads(out)["things"]] == counts


def test_pictures_of_one_name_are_drawn_to_files_of_their_own(folder, capsys, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(SCENES[1]).save(other / "0.png")
    paths = [str(folder / "0.png"), str(other / "0.png")]
    target = tmp_path / "drawn"
    arguments = ["detect", *paths, "--out", str(target), *MODEL, "--things", "red square"]
    assert run(arguments, capsys)[0] == 0
    assert sorted(p.name for p in target.iterdir()) == ["0-2.png", "0.png"]


def test_a_picture_is_never_drawn_over(folder, capsys):
    before = (folder / "0.png").read_bytes()
    arguments = ["detect", str(folder), "--out", str(folder), *MODEL, "--things", "red square"]
    status, _, err = run(arguments, capsys)
    assert status == 2
    assert "give another folder as --out" in err
    assert (folder / "0.png").read_bytes() == before


def test_one_bad_picture_among_many_is_told_and_the_others_are_answered(folder, vlm, capsys):
    (folder / "1.png").write_bytes(b"no picture")
    status, out, err = run(["caption", str(folder), *MODEL], capsys)
    assert status == 1
    assert len(out.splitlines()) == 2
    assert "1.png is no picture that can be read" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "{folder}/0.png"], "expected --model DIR.*paligemma_tabletop"),
        (["caption", "{folder}/none.png", *MODEL], "no picture at"),
        (["caption", "{folder}/notes.txt", *MODEL], "no picture that can be read"),
        (["caption", "{folder}/0.png", "--max-megapixels", "0.01", *MODEL], "at most 10,000"),
        (["caption", "{folder}/0.png", "--lang", "xx", *MODEL], "unknown language 'xx'"),
        (["caption", "{folder}/0.png", "--top-p", "0.5", *MODEL], "top_p needs a temperature"),
        (["caption", "{folder}/0.png", *MODEL, "--device", "abacus"], "unknown device 'abacus'"),
        (["ask", "-", *MODEL], "give the question with --question"),
        (["detect", "{folder}/0.png", *MODEL, "--things", "a;b"], "holds ';'"),
        (
            ["segment", "{folder}/0.png", *MODEL, "--things", "cup"],
            "no mask codec beside .*--codec",
        ),
        (
            ["segment", "{folder}/0.png", *MODEL, "--things", "cup", "--codec", "x"],
            "no mask codec at x",
        ),
        (["evaluate-vlm", "cococapp", "--data", "x", *MODEL], "did you mean cococap"),
        (["evaluate-vlm", "refcoco-masks", "--data", "x"], "expected --model DIR"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, capsys, arguments, message):
    status, out, err = run([a.format(folder=folder) for a in arguments], capsys)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)


def test_a_test_is_scored_and_saved(folder, vlm, capsys, tmp_path):
    captions = vlm.caption(SCENES, beams=2, max_new_tokens=32)
    lines = [
        json.dumps({"image": f"{i}.png", "suffix": caption}) for i, caption in enumerate(captions)
    ]
    (folder / "data.jsonl").write_text("\n".join(lines))
    target = tmp_path / "scores"
    arguments = ["evaluate-vlm", "cococap", "--data", str(folder / "data.jsonl")]
    status, out, _ = run([*arguments, "--output-dir", str(target), *MODEL], capsys)
    assert status == 0
    assert "CIDEr" in out
    said = [json.loads(line) for line in (target / "predictions.jsonl").read_text().splitlines()]
    assert [line["text"] for line in said] == captions


def test_a_mask_a_box_and_a_name_are_drawn_in_one_colour():
    picture = np.full((60, 80, 3), 100, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[30:40, 40:50] = True
    thing = Thing("cup", (10.0, 5.0, 70.0, 55.0), mask)
    drawn = np.array(draw_findings(picture, Findings((thing,), (), "")))
    assert drawn[55, 40].tolist() == list(COLOURS[0])
    assert drawn[35, 45].tolist() == [round(0.55 * 100 + 0.45 * c) for c in COLOURS[0]]
    assert drawn[58, 78].tolist() == [100] * 3
    assert (picture == 100).all()


def test_boxes_beyond_the_picture_and_foreign_names_are_drawn_too():
    thing = Thing("猫", (-20.0, -5.0, 500.0, 300.0))
    drawn = draw_findings(np.zeros((9, 9, 3), np.uint8), Findings((thing,), (), ""))
    assert drawn.size == (9, 9)
