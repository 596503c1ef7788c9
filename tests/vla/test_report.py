"""The report, drawn from made-up results and opened in a real browser."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
from browser import open_page

from vla.evaluation.heat import colours, overlay
from vla.evaluation.intervals import wilson
from vla.evaluation.report import (
    Attention,
    Chunk,
    Curves,
    Report,
    Result,
    Video,
    smoothed,
    write_report,
)
from vla.evaluation.svg import Series, interval_bar, line_chart, smooth, ticks
from vla.evaluation.table import Row


def row(name: str, k: int, n: int) -> Row:
    return Row(name, k, n, *wilson(k, n), 37.2, 31.2, 48.1)


def scene(x: int) -> np.ndarray:
    image = np.full((96, 96, 3), 128, np.uint8)
    image[60:74, x : x + 14] = (200, 40, 40)
    return image


def write_mp4(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for x in range(0, 60, 6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(x), format="rgb24")))
        container.mux(stream.encode())
    return path


def example(folder: Path) -> Report:
    video = write_mp4(folder / "episode.mp4")
    expert = np.sin(np.arange(30).reshape(10, 3) / 5)
    valid = np.arange(10) < 8
    steps = list(range(100))
    heat = np.zeros((6, 6))
    heat[4, 2] = 0.5
    return Report(
        title="A <small> π0",
        lead="94 of 100 unseen scenes.",
        facts={"Environment": "Tabletop-easy-v0", "Wall time": "13 min 20 s"},
        results=(
            Result("Trained", "100 unseen scenes", row("", 94, 100), target=0.9),
            Result("Untrained", "before training", row("", 0, 100)),
        ),
        tasks=(row("put on", 50, 52), row("push to", 44, 48)),
        videos=tuple(Video(video, f"Scene {i}", "put it there", i < 3) for i in range(4)),
        curves=(
            Curves(smoothed("training", steps, [1 / (1 + s) for s in steps]), "Loss", "", "loss"),
            Curves((Series("held out", [0, 50, 99], [0, 0.5, 1]),), "Accuracy", "", "share", True),
        ),
        chunks=(Chunk(expert + 0.1, expert, valid, "put it there"),),
        action_names=("x", "y", "grip"),
        attention=(
            Attention({"top": scene(10), "wrist": scene(50)}, {"top": heat, "wrist": heat / 2},
                      0.25, "put it there"),
        ),
        footer="Seed 0.",
    )  # fmt: skip


@pytest.mark.slow
def test_a_browser_shows_every_part_of_the_report(tmp_path):
    write_report(example(tmp_path), tmp_path / "report.html")
    document = open_page(tmp_path / "report.html", tmp_path / "profile")
    sections = re.findall(r'<section id="(\w+)">', document)
    assert sections == ["success", "videos", "curves", "chunks", "attention"]
    assert document.count('data-state="loaded"') == 4
    assert document.count("94 of 100") == 2  # in the lead and in the table
    assert document.count('class="plot"') == 2 + 3  # two curves, one chart per action dimension
    assert document.count("<img") == 1 + 4  # the colour scale; two cameras, plain and with heat
    assert "top 50%, wrist 25%, instruction 25%" in document


def test_the_report_needs_nothing_outside_its_file(tmp_path):
    write_report(example(tmp_path), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import|https?://""", page)
    assert not list(tmp_path.glob("*.partial"))


def test_text_from_outside_is_escaped(tmp_path):
    write_report(example(tmp_path), tmp_path / "report.html")
    assert "<h1>A &lt;small&gt; π0</h1>" in (tmp_path / "report.html").read_text()


def test_parts_without_content_are_left_out(tmp_path):
    write_report(Report("Title", "Lead", {}), tmp_path / "report.html")
    assert "<section" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 3000, [0, 1000, 2000, 3000]),
        (-7, 3, [-6, -4, -2, 0, 2]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_smoothing_averages_neighbours_and_shrinks_at_the_ends():
    assert smooth([0, 3, 6, 9], 3).tolist() == [1.5, 3, 6, 7.5]
    assert smooth([1, 5], 1).tolist() == [1, 5]


def test_a_line_goes_through_its_points_in_the_frame():
    chart = line_chart(
        [Series("a", [0, 1, 2], [0.0, float("nan"), 1.0])],
        label="rise", x_label="", y_label="y", y_range=(0, 1), size=(158, 152),
    )  # fmt: skip
    assert 'points="44.0,128.0 144.0,28.0"' in chart  # the value that isn't finite is left out


def test_a_chart_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one finite value"):
        line_chart([Series("a", [0], [float("nan")])], label="", x_label="", y_label="")


def test_an_interval_bar_puts_rate_interval_and_target_on_one_scale():
    bar = interval_bar(0.5, 0.25, 0.75, target=1.0)
    assert 'cx="110.0"' in bar
    assert 'x1="59.0" x2="161.0"' in bar
    assert 'class="target" x1="212.0"' in bar


def test_heat_is_brightest_where_it_is_largest_and_grey_elsewhere():
    heat = np.zeros((4, 4))
    heat[1, 2] = 3.0
    picture = overlay(np.full((8, 8, 3), 128, np.uint8), heat, 64)
    assert picture.shape == (64, 64, 3)
    brightness = picture.sum(axis=2)
    y, x = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (y // 16, x // 16) == (1, 2)
    assert colours(np.array([0.0, 1.0])).tolist() == [[8, 6, 40], [252, 244, 160]]


def test_even_heat_is_dim_everywhere():
    picture = overlay(np.full((8, 8, 3), 128, np.uint8), np.ones((4, 4)), 64)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1
    assert picture.max() < 128
