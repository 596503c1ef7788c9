"""Written tests about tabletop scenes, read back and held against the scenes and their masks."""

import json

import numpy as np
import pytest

from backbone.detections import Box, Detection, detection_answer
from envs.tabletop.render import render
from envs.tabletop.scene import STANDARD, sample_scene
from envs.tabletop.truth import boxes, masks
from vla import cli
from vla.data.annotated import read_annotated
from vla.data.tabletop_annotated import write_annotated
from vla.data.tabletop_questions import KINDS
from vla.data.tabletop_text import caption
from vla.evaluation.evaluate_vlm import evaluate_vlm
from vla.evaluation.vlm_tasks import TASKS, referring_masks

SCENES, SEED, SIZE = 12, 7, 72


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tests") / "set"
    return write_annotated(
        "Tabletop-v0", SCENES, folder, seed=SEED, image_size=SIZE, progress=False
    )


def scene(i):
    rng = np.random.default_rng((SEED, i))
    return sample_scene(rng, STANDARD).with_random_gripper(rng)


def test_every_test_reads_back_as_the_truth_of_its_scenes(root):
    questions, captions, found, segments = (
        read_annotated(root / f"{name}.jsonl")
        for name in ("questions", "captions", "detect", "segment")
    )
    assert [e.group for e in questions] == [*KINDS] * SCENES
    assert len(captions) == len(found) == len(segments) == SCENES
    for i, (told, seen, cut) in enumerate(zip(captions, found, segments, strict=True)):
        truth = scene(i)
        (picture,) = told.read_images()
        np.testing.assert_array_equal(picture, render(truth, "top", SIZE))
        assert told.suffixes == (caption(truth),)
        assert 1 <= len(seen.objects) <= 4
        for thing in (*seen.objects, *cut.objects):
            y0, x0, y1, x1 = boxes(truth, "top")[thing.label]
            np.testing.assert_allclose(np.array(thing.box) / SIZE, (x0, y0, x1, y1))
        (thing,) = cut.objects
        assert cut.prefix == f"segment {thing.label}"
        np.testing.assert_array_equal(thing.read_mask(), masks(truth, "top", SIZE)[thing.label])


def test_right_answers_get_full_marks(root):
    """Boxes as the 1024 tokens tell them; a full mask in each box, which shapes fill in part."""

    def boxed(example, codes=None):
        size = example.size[::-1]
        things = [
            Detection(o.label, Box.from_pixels(*o.box, image_size=size), codes)
            for o in example.objects
        ]
        return detection_answer(things)

    def score(name, task, answer):
        examples = read_annotated(root / f"{name}.jsonl")
        said = iter(examples)
        result = evaluate_vlm(task, examples, lambda _, asked: [answer(next(said)) for _ in asked])
        return {s.name: s.value for s in result.scores}

    accuracy = score("questions", TASKS["gqa"], lambda e: e.suffixes[0])
    assert accuracy == dict.fromkeys(accuracy, 1.0)
    assert {f"accuracy/{kind}" for kind in KINDS} <= accuracy.keys()
    captioned = score("captions", TASKS["xm3600"], lambda e: e.suffixes[0])
    assert captioned["BLEU-4"] == pytest.approx(1.0)
    assert score("detect", TASKS["detect"], boxed)["mAP@.5"] == 1.0
    whole = referring_masks(lambda codes: np.ones((len(codes), 64, 64), np.float32))
    segmented = score("segment", whole, lambda e: boxed(e, (0,) * 16))
    assert segmented["box accuracy@0.75"] == 1.0
    assert 0.3 < segmented["mIoU"] < 0.9


def test_boxes_at_the_pictures_edge_lie_within_it(tmp_path):
    """Scene 396 of the default seed has one whose left edge is computed as -4e-18."""
    folder = write_annotated(
        "Tabletop-v0", 397, tmp_path / "set", seed=1_000_000, image_size=8, progress=False
    )
    objects = read_annotated(folder / "detect.jsonl")[-1].objects
    assert 0.0 in [edge for thing in objects for edge in thing.box]


def test_the_same_seed_gives_the_same_files_and_another_one_others(root, tmp_path):
    kwargs = {"image_size": SIZE, "progress": False}
    again = write_annotated("Tabletop-v0", SCENES, tmp_path / "same", seed=SEED, **kwargs)
    other = write_annotated("Tabletop-v0", SCENES, tmp_path / "other", seed=SEED + 1, **kwargs)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert len(files) == 4 + 2 * SCENES
    assert all((root / f).read_bytes() == (again / f).read_bytes() for f in files)
    assert (root / "captions.jsonl").read_bytes() != (other / "captions.jsonl").read_bytes()


def test_nothing_half_written_stays_and_nothing_is_written_over(root, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="exists already"):
        write_annotated("Tabletop-v0", 1, root, seed=0, image_size=SIZE)
    with pytest.raises(ValueError, match="about 'pusht'; known are Tabletop-easy-v0, Tabletop-v0"):
        write_annotated("pusht", 1, tmp_path / "set", seed=0, image_size=SIZE)
    monkeypatch.setattr("vla.data.tabletop_annotated.caption", lambda scene: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_annotated("Tabletop-v0", 1, tmp_path / "set", seed=0, image_size=SIZE)
    assert not any(tmp_path.iterdir())


def test_the_command_writes_scenes_that_no_training_draws(tmp_path, capsys):
    folder = tmp_path / "set"
    arguments = ["collect-vlm", "Tabletop-easy-v0", "--scenes", "2", "--root", str(folder)]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"2 scenes of Tabletop-easy-v0 in {folder}\n"
    same = tmp_path / "same"
    write_annotated("Tabletop-easy-v0", 2, same, seed=1_000_000, image_size=288, progress=False)
    lines = [(f / "questions.jsonl").read_text() for f in (folder, same)]
    assert lines[0] == lines[1]
    assert len(json.loads(lines[0].splitlines()[0])) == 4
