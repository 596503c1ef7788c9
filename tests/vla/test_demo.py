"""The demo: its folder's fate, its verdict, and the whole path once."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from browser import open_page

from backbone.paligemma import PALIGEMMA_TINY, PaliGemma
from backbone.pretrained import read_config, save_pretrained
from backbone.tokenizer import Tokenizer
from vla.assets import PALIGEMMA_TABLETOP_FINE
from vla.demo import FULL, losses_fell, replaced, run_demo, train_config
from vla.demo_curve import Point, steps_to
from vla.demo_report import summary
from vla.pi0 import PI0_SMALL
from vla.pi05 import PI05_SMALL


def stop_halfway(final: Path) -> None:
    with replaced(final) as folder:
        (folder / "result.json").write_text("half")
        raise RuntimeError("stopped")


def test_the_new_output_takes_the_old_ones_place_only_when_done(tmp_path):
    final = tmp_path / "out" / "demo"
    with replaced(final) as folder:
        (folder / "result.json").write_text("first")
    with pytest.raises(RuntimeError, match="stopped"):
        stop_halfway(final)
    assert (final / "result.json").read_text() == "first"
    with replaced(final) as folder:
        assert not list(folder.iterdir())  # what the stopped one left is gone
        (folder / "result.json").write_text("second")
    assert (final / "result.json").read_text() == "second"
    assert [p.name for p in final.parent.iterdir()] == ["demo"]


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "demo").mkdir()
    with replaced(tmp_path / "demo") as folder:
        (folder / "result.json").write_text("")
    assert (tmp_path / "demo" / "result.json").exists()


@pytest.mark.parametrize("name", ["a-file", "a-folder"])
def test_what_no_demo_made_is_not_replaced(tmp_path, name):
    (tmp_path / "a-file").write_text("mine")
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-folder" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"{name} exists and isn't a demo's output"):
        replaced(tmp_path / name).__enter__()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-file", "a-folder"]


@pytest.mark.parametrize(
    ("losses", "fell"), [([4, 3, 2, 1], True), ([1, 1, 1, 1], False), ([1, 5, 0, 2], False)]
)
def test_losses_fell_when_the_last_quarter_is_below_the_first(tmp_path, losses, fell):
    lines = [json.dumps({"step": i, "loss": loss}) for i, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert losses_fell(tmp_path) is fell


def test_the_summary_gives_counts_intervals_and_what_was_wanted():
    counts = {"success": 94, "untrained": 0, "swapped_original": 4, "swapped_named": 81}
    result = {name: {"k": k, "n": 100} for name, k in counts.items()}
    result |= {"steps_to_target": 1200, "seconds": 801.4}
    assert summary(result).splitlines() == [
        "success             94/100   94%  [88%, 97%]   wanted ≥ 90%",
        "untrained            0/100    0%  [0%, 4%]",
        "swapped_original     4/100    4%  [2%, 10%]   wanted ≤ 15%",
        "swapped_named       81/100   81%  [72%, 87%]   wanted ≥ 75%",
        "90% solved         after 1200 steps",
        "time               13 min 21 s",
    ]
    assert "90% solved         never on the curve" in summary({**result, "steps_to_target": None})


def test_the_target_is_reached_where_the_curve_first_touches_it():
    points = [Point(step, k, 20, 0.5) for step, k in ((0, 0), (200, 18), (400, 17), (600, 20))]
    assert steps_to(0.9, points) == 200
    assert steps_to(0.95, points) == 600
    assert steps_to(0.95, points[:3]) is None


def test_a_plan_takes_its_sizes_from_the_paligemma_it_starts_from(tmp_path):
    shipped, fine = FULL, replace(FULL, init=PALIGEMMA_TABLETOP_FINE, policy="pi05")
    assert shipped.model == PI0_SMALL == replace(FULL, init=None).model
    assert fine.model == replace(PI05_SMALL, backbone=read_config(PALIGEMMA_TABLETOP_FINE))
    assert fine.model.backbone.vision.patch == 8
    config = train_config(replace(fine, curve=300), tmp_path)
    assert (config.init, config.model) == (PALIGEMMA_TABLETOP_FINE, fine.model)
    assert (config.save_every, config.steps, config.keep) == (300, 2000, 7)  # 300 … 1800, 2000


def test_an_expert_takes_the_depth_and_heads_of_the_paligemma_it_reads(tmp_path):
    save_pretrained(PaliGemma(PALIGEMMA_TINY), Tokenizer.small(), tmp_path / "tiny")
    model = replace(FULL, init=tmp_path / "tiny").model
    ours, theirs = model.expert.gemma, PALIGEMMA_TINY.language
    assert (ours.depth, ours.heads, ours.head_dim) == (theirs.depth, theirs.heads, theirs.head_dim)
    assert (ours.width, ours.mlp) == (PI0_SMALL.expert.gemma.width, PI0_SMALL.expert.gemma.mlp)


def test_an_init_that_can_not_be_loaded_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="no PaliGemma at"):
        run_demo(tmp_path / "demo", init=tmp_path / "nothing")
    save_pretrained(PaliGemma(PALIGEMMA_TINY), Tokenizer.small(), tmp_path / "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        run_demo(tmp_path / "demo", init=tmp_path / "tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.slow
def test_the_quick_demo_goes_all_the_way_and_its_report_opens(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "vla", "demo", "--quick", "--output-dir", str(out)]
    command += ["--init", "none", "--curve", "20", "--curve-episodes", "2"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((out / "result.json").read_text())
    counts = ["success", "untrained", "swapped_original", "swapped_named"]
    assert list(result) == [*counts, "curve", "steps_to_target", "seconds"]
    assert [(p["step"], p["n"]) for p in result["curve"]] == [(0, 2), (20, 2), (40, 2), (60, 2)]
    assert all(0 <= result[name]["k"] <= result[name]["n"] for name in list(result)[:4])
    assert 0 < result["seconds"] <= seconds
    assert len(list((out / "videos").glob("*.mp4"))) == 4
    assert (out / "policy" / "model.safetensors").exists()
    document = open_page(out / "report.html", tmp_path / "profile")
    assert document.count("<section") == 5
    assert "random weights" in document
    assert document.count('data-state="loaded"') == 4
