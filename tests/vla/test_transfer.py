"""Transfers: the published table, the run that a row becomes, and its mistakes."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.pretrained import save_pretrained
from backbone.tokenizer import Tokenizer
from vla.assets import MASK_CODEC_TABLETOP
from vla.cli import main
from vla.data.annotated import read_annotated
from vla.data.image_text.frames import Frames
from vla.evaluation.vlm_tasks import MASK_TASK, TASKS
from vla.training.schedule import multiplier
from vla.transfer.run import Request, run_transfer, stage, variants
from vla.transfer.table import GRID, START, TRANSFERS, Settings, settings, transfer

QUICK = ("--device", "cpu", "--eval-batches", "1", "--no-tensorboard", "--batch-size", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_pretrained(PaliGemma(PALIGEMMA_TINY), Tokenizer.small(), folder)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 6), ("val", 2)):
        lines = []
        for i in range(count):
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(folder / f"{split}{i}.png")
            line = {"image": f"{split}{i}.png", "question": f"how grey is {i}?"}
            lines.append({**line, "suffixes": ["A" if i % 2 else "B"] * 4})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def request(model: Path, data: Path, **fields) -> Request:
    values = {"task": "vqav2", "resolution": 32, "recipe": 224, "init": model, "data": data}
    return Request(**{**values, "output_dir": data.parent / "run", **fields})


# --- the table ------------------------------------------------------------------------------------


def test_the_table_has_every_published_task_and_knows_how_to_score_it():
    assert len(TRANSFERS) == 31
    for name, row in TRANSFERS.items():
        assert row.metric in (*TASKS, MASK_TASK), name
        assert set(row.settings) <= {224, 448, 896}
        assert 224 in row.settings
        for value in row.settings.values():
            assert value.decay in (0.0, pytest.approx(0.1 * value.lr)), name


@pytest.mark.parametrize(
    ("task", "resolution", "expected"),
    [
        ("cococap", 448, Settings(5, 256, 1e-5, 1e-6)),
        ("nlvr2", 448, Settings(10, 256, 3e-6, 3e-7)),
        ("gqa", 448, Settings(1, 256, 1e-5, frozen=True)),
        ("tallyqa", 896, Settings(2, 256, 7e-6, 7e-7)),
        ("infovqa", 896, Settings(3, 32, 3e-6, 3e-7, smoothing=0.4)),
        ("refcoco", 224, Settings(100, 256, 3e-5, dropout=0.1, smoothing=0.3)),
        ("scicap", 224, Settings(80, 256, 3e-5, dropout=0.1, smoothing=0.1)),
    ],
)
def test_settings_are_the_papers(task, resolution, expected):
    assert settings(task, resolution) == expected


def test_prompts_and_decoding_are_big_visions():
    assert (transfer("textcaps").beams, transfer("cococap").beams) == (3, 2)
    assert transfer("chartqa").ask == "{question}"
    assert transfer("docvqa").ask == "{question}"
    assert transfer("stvqa").ask == "answer en {question}"
    assert [name for name, row in TRANSFERS.items() if row.frames == 16] == [
        *("activitynet-qa", "activitynet-cap", "msrvtt-qa", "msrvtt-cap", "vatex"),
    ]
    assert transfer("msvd-qa").frames == 8


# --- the run --------------------------------------------------------------------------------------


def test_a_row_becomes_a_run(model, data):
    chosen = Settings(3, 4, 1e-5, 1e-6, dropout=0.1, smoothing=0.2, frozen=True)
    config = stage(request(model, data), chosen)
    assert (config.steps, config.batch_size) == (round(3 * 6 / 4), 4)
    assert (config.dropout, config.label_smoothing) == (0.1, 0.2)
    assert config.freeze == ("vision",)
    assert config.text_length == 32
    assert config.optim.weight_decay == 1e-6
    assert not config.optim.decay_by_rate
    schedule = config.optim.schedule
    assert schedule is not None
    assert multiplier(schedule, 50, 1000) == 1
    assert multiplier(schedule, 25, 1000) == 0.5
    assert multiplier(schedule, 525, 1000) == pytest.approx(0.5)
    assert multiplier(schedule, 1000, 1000) == pytest.approx(0)
    few = stage(request(model, data, few=3), chosen)
    assert (few.batch_size, few.steps) == (3, 3)


def test_few_examples_are_drawn_by_the_seed(model, data):
    def drawn(seed: int) -> set[str]:
        config = stage(request(model, data, few=3), START, seed)
        examples = config.data.training(PALIGEMMA_TINY, 0)
        return {examples[i].where for i in range(12)}

    assert len(drawn(0)) == 3
    assert drawn(0) == drawn(0)
    assert len({tuple(sorted(drawn(seed))) for seed in range(6)}) > 1
    with pytest.raises(ValueError, match=r"few asks for 9 examples, .* has 6"):
        stage(request(model, data, few=9), START).job()


@pytest.fixture
def referred(tmp_path) -> Path:
    """Things with masks: the left or the right half of the picture."""
    folder = tmp_path / "referred"
    folder.mkdir()
    picture = np.zeros((16, 16, 3), np.uint8)
    Image.fromarray(picture).save(folder / "p.png")
    lines = []
    for side, x in (("left", 0), ("right", 8)):
        mask = np.zeros((16, 16), bool)
        mask[:, x : x + 8] = True
        Image.fromarray(mask).save(folder / f"{side}.png")
        thing = {"label": f"the {side}", "box": [x, 0, x + 8, 16], "mask": f"{side}.png"}
        lines.append(json.dumps({"image": "p.png", "objects": [thing]}))
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def test_referring_is_learned_with_masks_and_scored_by_them_and_by_boxes(model, referred, tmp_path):
    asked = request(model, referred, task="refcoco")
    with pytest.raises(ValueError, match=r"refcoco is answered with masks, .* put vae-oid\.npz or"):
        stage(asked, START)
    shutil.copytree(model, tmp_path / "with_codec")
    shutil.copy(MASK_CODEC_TABLETOP, tmp_path / "with_codec")
    asked = replace(asked, init=tmp_path / "with_codec")
    rows = run_transfer(
        asked, overrides=(*QUICK, "--steps", "120", "--optim.lr", "5e-3", "--label-smoothing", "0")
    )
    assert rows[0]["metric"] == "mIoU"
    scores = json.loads((asked.output_dir / "scores.json").read_text())["scores"]
    assert [s["name"] for s in scores] == [
        *("mIoU", "box accuracy@0.5", "box accuracy@0.75", "valid answers")
    ]
    found = {s["name"]: s["value"] for s in scores}
    assert found["mIoU"] > 0.8, found  # two answers by heart: full masks in half of the picture
    assert found["box accuracy@0.75"] == 1


def test_frames_of_films_are_taken_at_the_published_stride(model, data):
    from vla.transfer.run import _frames

    row = transfer("activitynet-qa")
    still = read_annotated(data / "train.jsonl")
    assert _frames(row, still) is None
    assert _frames(row, [replace(still[0], video=Path("film.mp4"))]) == Frames(16, 70)


def test_a_transfer_trains_scores_and_is_written_down(model, data, capsys):
    folder = data.parent / "out"
    words = ["transfer", "vqav2", "--resolution", "32", "--recipe", "224", "--init", str(model)]
    words += ["--data", str(data), "--output-dir", str(folder), "--seeds", "2", "--examples", "4"]
    with pytest.raises(SystemExit, match="0"):
        main([*words, *QUICK, "--steps", "2"])
    written = json.loads((folder / "transfer.json").read_text())
    [row] = written["rows"]
    assert (row["variant"], row["metric"], len(row["values"])) == ("published", "VQA accuracy", 2)
    assert row["mean"] == pytest.approx(sum(row["values"]) / 2)
    assert (folder / "seed1/paligemma/model.safetensors").is_file()
    lines = (folder / "seed0/predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["prompt"] == "answer en how grey is 0?"
    assert "published: VQA accuracy" in capsys.readouterr().out


def test_a_model_that_learns_an_answer_by_heart_scores(model, data):
    rows = run_transfer(
        request(model, data),
        overrides=(*QUICK, "--steps", "60", "--optim.lr", "3e-3", "--batch-size", "6"),
    )
    assert rows[0]["mean"] >= 0.5  # both answers occur equally often


def test_a_sweep_is_the_papers_grid(model, data):
    found = variants(START, ("lr", "decay"))
    assert len(found) == len(GRID["lr"]) * 2
    assert {round(v.decay / v.lr, 6) for v in found.values()} == {0.0, 0.1}
    assert found["lr=3e-05_decay=0.1"] == replace(START, lr=3e-5, decay=3e-5 * 0.1)
    assert variants(START, ()) == {"published": START}
    assert math.prod(map(len, GRID.values())) == 540
    with pytest.raises(ValueError, match="no axis 'learning' to sweep; there are epochs, lr"):
        variants(START, ("learning",))


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"split": "test"}, FileNotFoundError, r"'test' is missing: .*train\.jsonl, val\.jsonl"),
        ({"resolution": 448}, ValueError, "of 32 pixels, but --resolution is 448; give the check"),
        ({"task": "cococaps"}, ValueError, "unknown task 'cococaps'; did you mean cococap"),
    ],
)
def test_what_does_not_fit_is_refused(model, data, fields, error, message):
    with pytest.raises(error, match=message):
        stage(request(model, data, **fields), START)


def test_a_resolution_without_published_settings_is_told():
    with pytest.raises(ValueError, match=r"no settings of okvqa .* for 896 pixels, only for 224, "):
        settings("okvqa", 896)


def test_an_example_without_its_question_is_named(model, data):
    path = data / "train.jsonl"
    path.write_text(json.dumps({"image": "train0.png", "suffix": "A"}))
    with pytest.raises(ValueError, match=r'train\.jsonl:1: expected "question", or "prefix"'):
        stage(request(model, data), START).job()
    assert read_annotated(path)
