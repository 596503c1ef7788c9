"""The demo: its folder's fate, its verdict, and the whole path once."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import open_page

from vla.demo import losses_fell, replaced
from vla.demo_report import summary


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
    assert summary({**result, "seconds": 801.4}).splitlines() == [
        "success             94/100   94%  [88%, 97%]   wanted ≥ 90%",
        "untrained            0/100    0%  [0%, 4%]",
        "swapped_original     4/100    4%  [2%, 10%]   wanted ≤ 15%",
        "swapped_named       81/100   81%  [72%, 87%]   wanted ≥ 75%",
        "time              13 min 21 s",
    ]


@pytest.mark.slow
def test_the_quick_demo_goes_all_the_way_and_its_report_opens(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "vla", "demo", "--quick", "--output-dir", str(out)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((out / "result.json").read_text())
    assert list(result) == ["success", "untrained", "swapped_original", "swapped_named", "seconds"]
    assert all(0 <= result[name]["k"] <= result[name]["n"] for name in list(result)[:4])
    assert 0 < result["seconds"] <= seconds
    assert len(list((out / "videos").glob("*.mp4"))) == 4
    assert (out / "policy" / "model.safetensors").exists()
    document = open_page(out / "report.html", tmp_path / "profile")
    assert document.count("<section") == 5
    assert document.count('data-state="loaded"') == 4
