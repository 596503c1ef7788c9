"""Image-text tests with a function in the model's place."""

import json

import numpy as np
import pytest
from PIL import Image

from vla.data.annotated import read_annotated
from vla.evaluation.evaluate_vlm import evaluate_vlm, save_vlm_evaluation
from vla.evaluation.vlm_tasks import TASKS, read_objects, referring_masks
from vla.metrics import load_scores


@pytest.fixture
def examples(tmp_path):
    """Lines → examples about a picture of 1023 × 2046 pixels, so that bins are easy."""
    Image.fromarray(np.zeros((2046, 1023), dtype=np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros((2046, 1023), dtype=np.uint8)
    mask[200:1000, 100:300] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")

    def write(*lines):
        texts = [json.dumps({"image": "a.png", **line}) for line in lines]
        (tmp_path / "data.jsonl").write_text("\n".join(texts))
        return read_annotated(tmp_path)

    return write


class Parrot:
    """Says prepared texts and keeps what it was asked."""

    def __init__(self, *texts):
        self.texts, self.prompts, self.calls = list(texts), [], []

    def __call__(self, images, prompts):
        assert all(p.shape == (2046, 1023, 3) for pictures in images for p in pictures)
        self.prompts += prompts
        self.calls.append(len(prompts))
        return [self.texts.pop(0) for _ in prompts]


def test_captions_are_asked_for_in_english_unless_the_prefix_says_otherwise(examples):
    lines = [{"suffixes": ["a red cup", "one cup"]}, {"suffix": "kaksi", "prefix": "caption fi"}]
    parrot = Parrot("a red cup", "kaksi")
    result = evaluate_vlm(TASKS["cococap"], examples(*lines), parrot)
    assert parrot.prompts == ["caption en", "caption fi"]
    assert [s.name for s in result.scores] == ["CIDEr-D", "BLEU-4", "ROUGE-L"]
    assert (TASKS["cococap"].beams, TASKS["textcaps"].beams) == (2, 3)


@pytest.mark.parametrize(
    ("task", "prompt"),
    [("vqav2", "answer en how many?"), ("docvqa", "how many?"), ("tallyqa", "answer en how many?")],
)
def test_questions_are_asked_as_in_the_transfers(examples, task, prompt):
    parrot = Parrot("two")
    line = {"question": "how many?", "suffixes": ["2"] * 9 + ["3"]}
    result = evaluate_vlm(TASKS[task], examples(line), parrot)
    assert parrot.prompts == [prompt]
    assert result.scores[0].value == {"vqav2": 1, "docvqa": 0, "tallyqa": 1}[task]


def test_groups_and_sets_get_rows_of_their_own(examples):
    line = {"question": "q", "suffix": "True"}
    lines = [{**line, "group": g, "set": s} for g, s in ("ax", "ay", "by")]
    result = evaluate_vlm(TASKS["nlvr2"], examples(*lines), Parrot("True", "False", "True"))
    assert {s.name: s.value for s in result.scores} == {
        "accuracy": pytest.approx(2 / 3),
        "accuracy/a": 0.5,
        "accuracy/b": 1,
        "accuracy, mean of groups": 0.75,
        "accuracy, whole sets": 0.5,
    }


def test_pictures_are_read_and_asked_about_in_batches(examples):
    parrot = Parrot("yes", "no", "yes", "yes", "no")
    data = examples(*[{"question": "q", "suffix": "yes"}] * 5)
    result = evaluate_vlm(TASKS["pope"], data, parrot, batch=2)
    assert parrot.calls == [2, 2, 1]
    assert result.texts == ("yes", "no", "yes", "yes", "no")
    assert result.scores[0].value == 0.6


def test_referring_boxes_are_bins_of_the_picture(examples):
    # y0 x0 y1 x1; the picture is one pixel a bin wide and two high
    lines = [{"objects": [{"label": "the left cat", "box": [100, 200, 300, 1000]}]}] * 4
    right = "<loc0100><loc0100><loc0500><loc0300>"
    parrot = Parrot(
        right, f"{right}<seg000> cat", f" {right}", "<loc0500><loc0100><loc0100><loc0300>"
    )
    result = evaluate_vlm(TASKS["refcoco"], examples(*lines), parrot)
    assert parrot.prompts == ["the left cat"] * 4
    assert result.scores[0].per_example == (1, 1, 0, 0)
    assert [s.name for s in result.scores] == [
        "box accuracy@0.5",
        "box accuracy@0.75",
        "valid answers",
    ]
    assert result.scores[2].value == 0.5


def test_referring_masks_are_decoded_and_pasted(examples):
    box = {"label": "cat", "box": [100, 200, 300, 1000], "mask": "mask.png"}
    right = "<loc0100><loc0100><loc0500><loc0300>"
    codes = "".join(f"<seg{i:03}>" for i in range(16))

    def decode(given):
        np.testing.assert_array_equal(given, [range(16)])
        small = np.full((1, 64, 64), -1, dtype=np.float32)
        small[:, :32] = 1  # the upper half
        return small

    data = examples(*[{"objects": [box]}] * 3)
    parrot = Parrot(right + codes, right, right + codes.replace("<seg003>", "<seg128>"))
    result = evaluate_vlm(referring_masks(decode), data, parrot)
    assert [s.name for s in result.scores[:2]] == ["mIoU", "box accuracy@0.5"]
    assert result.scores[0].per_example == pytest.approx((0.5, 0, 0))
    assert result.scores[1].per_example == (1, 0, 0)  # without a mask the box doesn't count either


def test_objects_are_read_in_pixels_and_scored_as_coco_does(examples):
    objects = [
        {"label": "dog", "box": [0, 0, 1023, 2046]},
        {"label": "cat", "box": [100, 200, 300, 1000]},
    ]
    text = (
        "<loc0100><loc0100><loc0500><loc0300> cat ; <loc0000><loc0000><loc1023><loc1023> dog ; "
        "<loc9999><loc0000><loc1023><loc1023> dog ; <loc0005><loc0005><loc0005><loc0009> cat ; "
        "<loc0001><loc0002>"
    )
    (data,) = examples({"objects": objects})
    found = [(d.label, d.box) for d in read_objects(text, data)]
    assert found == [("cat", (100, 200, 300, 1000)), ("dog", (0, 0, 1023, 2046))]
    parrot = Parrot(text)
    result = evaluate_vlm(TASKS["detect"], [data], parrot)
    assert parrot.prompts == ["detect cat ; dog"]
    assert [s.value for s in result.scores] == pytest.approx([1, 1, 1])


def test_what_is_missing_is_told_before_anything_is_generated(examples):
    silent = Parrot()
    for task, line, message in [
        ("gqa", {"suffix": "x"}, 'data.jsonl:1: expected "question"'),
        ("vqav2", {"question": "q", "suffix": "x"}, "data.jsonl:1: expected at least 2 people's"),
        ("ai2d", {"question": "q", "suffix": "x"}, 'data.jsonl:1: expected "prefix"'),
        ("cococap", {"objects": []}, "data.jsonl:1: expected an answer"),
        ("detect", {"suffix": "x"}, 'data.jsonl:1: expected "objects"'),
        ("refcoco", {"suffix": "x"}, "data.jsonl:1: expected one object"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_vlm(TASKS[task], examples(line), silent)
    data = examples({"objects": [{"label": "cat", "box": [0, 0, 9, 9]}]})
    with pytest.raises(ValueError, match="expected one object with a mask"):
        evaluate_vlm(referring_masks(lambda codes: codes), data, silent)


def test_a_wrong_number_of_texts_is_refused(examples):
    data = examples({"question": "q", "suffix": "x"})
    with pytest.raises(ValueError, match="expected 1 texts from generate, got 2"):
        evaluate_vlm(TASKS["gqa"], data, lambda images, prompts: ["a", "b"])


def test_an_evaluation_is_kept_in_two_files(examples, tmp_path):
    data = examples({"question": "q", "suffix": "x"}, {"question": "r", "suffix": "y"})
    result = evaluate_vlm(TASKS["gqa"], data, Parrot("x", "é"))
    save_vlm_evaluation(result, tmp_path / "out", {"task": "gqa"})
    assert load_scores(tmp_path / "out/scores.json") == result.scores
    lines = (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {
        "images": [str(tmp_path / "a.png")],
        "prompt": "answer en r",
        "text": "é",
        "references": ["y"],
    }
    assert result.table().splitlines()[1].split()[:2] == ["accuracy", "50.0"]
