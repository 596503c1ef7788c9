"""One self-contained HTML page about a policy: what it was asked, what it did, what it looked at.

Everything is inside the file (styles, pictures, videos as base64), so it can be mailed, attached to
a run or opened years later without a network.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from vla.evaluation.heat import colour_scale, overlay
from vla.evaluation.svg import Series, interval_bar, legend, line_chart, smooth
from vla.evaluation.table import Row

PICTURE_WIDTH = 288  # px; small camera images are enlarged to about this, without blurring


@dataclass(frozen=True)
class Result:
    """One line of the success table: `row` under the heading `title`, explained by `note`;
    `target`, in [0, 1], is drawn as a tick where there is one.
    """

    title: str
    note: str
    row: Row
    target: float | None = None


@dataclass(frozen=True)
class Video:
    """An mp4 (H.264, so that browsers play it) of one episode; `success` None where not judged."""

    path: Path
    title: str
    note: str
    success: bool | None
    size: tuple[int, int] = (2, 1)  # width : height, so that the page doesn't jump while loading


@dataclass(frozen=True)
class Curves:
    """A chart of measurements during training, with its caption."""

    series: tuple[Series, ...]
    title: str
    note: str
    y_label: str
    percent: bool = False


@dataclass(frozen=True)
class Chunk:
    """What the policy meant to do and what the expert did, from the same observation.

    predicted, expert: float [H, A] in robot units; valid: bool [H], False past the episode's end.
    """

    predicted: np.ndarray
    expert: np.ndarray
    valid: np.ndarray
    task: str


@dataclass(frozen=True)
class Attention:
    """Where action tokens looked, on one observation.

    images: uint8 [H, W, 3] per camera; maps: float [h, w] per camera, each patch's share of the
    attention of the action tokens; text: the share that went to the instruction.
    """

    images: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    text: float
    task: str


@dataclass(frozen=True)
class Report:
    """All that the page shows, in order. Empty parts are left out."""

    title: str
    lead: str
    facts: dict[str, str]
    results: tuple[Result, ...] = ()
    tasks: tuple[Row, ...] = ()
    videos: tuple[Video, ...] = ()
    curves: tuple[Curves, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    action_names: tuple[str, ...] = ()
    attention: tuple[Attention, ...] = ()
    footer: str = ""


def write_report(report: Report, path: Path) -> None:
    """Write `report` to `path` as one HTML file; an older file there is replaced at the end."""
    template = Template(files("vla").joinpath("assets/report.html").read_text(encoding="utf-8"))
    parts = (
        _results(report),
        _videos(report.videos),
        _curves(report.curves),
        _chunks(report),
        _attention(report.attention),
    )
    page = template.substitute(
        title=escape(report.title),
        lead=escape(report.lead),
        facts=_facts(report.facts),
        sections="\n".join(part for part in parts if part),
        footer=escape(report.footer),
    )
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def _section(name: str, title: str, intro: str, body: str) -> str:
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2><p class="intro">{escape(intro)}</p>'
        f"{body}</section>"
    )


def _figure(body: str, title: str, note: str, extra: str = "") -> str:
    caption = f"<figcaption><b>{escape(title)}</b>{escape(note)}{extra}</figcaption>"
    return f"<figure>{body}{caption}</figure>"


def _facts(facts: dict[str, str]) -> str:
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


# --- success --------------------------------------------------------------------------------------


def _results(report: Report) -> str:
    if not report.results:
        return ""
    marked = any(r.target is not None for r in report.results)
    body = _result_table(report.results)
    if len(report.tasks) > 1:
        body += _task_table(report.tasks)
    intro = "Each bar is the 95 % Wilson interval around the measured rate (dot)"
    intro += "; the upright tick is the bar that was set beforehand." if marked else "."
    return _section("success", "Success", intro, body)


def _result_table(results: Sequence[Result]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(r.title)}<small>{escape(r.note)}</small></th>'
        f'<td class="number rate">{r.row.rate:.0%}</td>'
        f'<td class="number">{r.row.k} of {r.row.n}</td>'
        f"<td>{interval_bar(r.row.rate, r.row.low, r.row.high, r.target)}</td>"
        f'<td class="number">{r.row.low:.0%} – {r.row.high:.0%}</td>'
        f'<td class="number">{r.row.mean_length:.0f}</td></tr>'
        for r in results
    )
    return _table(
        (
            "What was measured",
            "#Success",
            "#Episodes",
            "0 … 100 %",
            "#95 % interval",
            "#Mean steps",
        ),
        rows,
    )


def _task_table(tasks: Sequence[Row]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(r.name)}</th><td class="number rate">{r.rate:.0%}</td>'
        f'<td class="number">{r.k} of {r.n}</td><td>{interval_bar(r.rate, r.low, r.high)}</td>'
        f'<td class="number">{r.mean_length:.0f}</td><td class="number">{_latency(r)}</td></tr>'
        for r in tasks
    )
    return _table(
        ("Task", "#Success", "#Episodes", "0 … 100 %", "#Mean steps", "#Policy ms, p50 / p95"),
        rows,
        "The trained policy, by what the instruction asks for.",
    )


def _table(heads: Sequence[str], rows: str, caption: str = "") -> str:
    """Headings that start with # stand over numbers and are set to the right like them."""
    cells = "".join(
        f'<th scope="col"{" class=number" * h.startswith("#")}>{escape(h.lstrip("#"))}</th>'
        for h in heads
    )
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{cells}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _latency(row: Row) -> str:
    if row.latency_p50_ms is None or row.latency_p95_ms is None:
        return "–"
    return f"{row.latency_p50_ms:.1f} / {row.latency_p95_ms:.1f}"


# --- videos ---------------------------------------------------------------------------------------


def _videos(videos: Sequence[Video]) -> str:
    if not videos:
        return ""
    body = "".join(_figure(_video(v), v.title, "", f"{_badge(v)}{escape(v.note)}") for v in videos)
    return _section(
        "videos",
        "Episodes",
        "What the policy saw while it acted, one picture per step.",
        f'<div class="grid two">{body}</div>',
    )


def _video(video: Video) -> str:
    source = "data:video/mp4;base64," + base64.b64encode(video.path.read_bytes()).decode("ascii")
    width, height = video.size
    return (
        f'<video controls loop muted playsinline preload="auto" style="--aspect:{width}/{height}" '
        f'aria-label="{escape(video.title, quote=True)}" src="{source}"></video>'
    )


def _badge(video: Video) -> str:
    if video.success is None:
        return ""
    word, css = ("solved", "yes") if video.success else ("not solved", "no")
    return f'<span class="badge {css}">{word}</span>'


# --- curves and chunks ----------------------------------------------------------------------------


def smoothed(
    name: str, x: Sequence[float], y: Sequence[float], colour: int = 1
) -> tuple[Series, ...]:
    """A noisy curve as two series: the values, faint, and their running mean over 4 % of them."""
    window = max(1, len(y) // 25)
    if window == 1:
        return (Series(name, x, y, colour, points=len(y) < 40),)
    return Series(name, x, y, colour, faint=True), Series(name, x, smooth(y, window), colour)


def _curves(curves: Sequence[Curves]) -> str:
    if not curves:
        return ""
    body = "".join(_figure(_curve_chart(c), c.title, c.note) for c in curves)
    return _section("curves", "Training", "", f'<div class="grid two">{body}</div>')


def _curve_chart(curves: Curves) -> str:
    chart = line_chart(
        curves.series,
        label=curves.title,
        x_label="training step",
        y_label=curves.y_label,
        y_range=(0.0, 1.0) if curves.percent else None,
        percent=curves.percent,
    )
    return f'<div class="body">{legend(curves.series)}{chart}</div>'


def _chunks(report: Report) -> str:
    if not report.chunks:
        return ""
    body = "".join(
        _figure(_chunk_charts(c, report.action_names), f"“{c.task}”", _chunk_note(c))
        for c in report.chunks
    )
    return _section(
        "chunks",
        "Predicted and expert chunks",
        "From one observation of a held-out episode: the actions the policy would take next, and "
        "those the expert took. In robot units, one chart per action dimension.",
        f'<div class="grid two">{body}</div>',
    )


def _chunk_note(chunk: Chunk) -> str:
    gap = np.abs(chunk.predicted - chunk.expert)[chunk.valid]
    return f"Mean absolute difference {gap.mean():.3f} over {int(chunk.valid.sum())} steps."


def _chunk_charts(chunk: Chunk, names: Sequence[str]) -> str:
    steps = np.flatnonzero(chunk.valid)
    charts, lines = "", ()
    for d, name in enumerate(names):
        lines = (
            Series("expert", steps, chunk.expert[steps, d], colour=2, dashed=True),
            Series("policy", steps, chunk.predicted[steps, d], colour=1),
        )
        last = d == len(names) - 1
        charts += line_chart(
            lines,
            label=f"{name}: policy against expert",
            x_label="step of the chunk" if last else "",
            y_label=name,
            size=(520, 168 if last else 150),
        )
    return f'<div class="body">{legend(lines)}{charts}</div>'


# --- attention ------------------------------------------------------------------------------------


def _attention(panels: Sequence[Attention]) -> str:
    if not panels:
        return ""
    body = "".join(
        _figure(_camera_pictures(p), f"“{p.task}”", _shares_note(p), _shares_bar(p)) for p in panels
    )
    picture = f'<img alt="colour scale, dark to bright" src="{png(colour_scale())}">'
    most = "the most of any patch, at least 3 times an even share"
    scale = f'<div class="scale"><span>none</span>{picture}<span>{most}</span></div>'
    return _section(
        "attention",
        "What the actions looked at",
        "Attention of the action tokens over each camera's image patches, mean over tokens, heads "
        "and layers, beside the picture itself. Each camera has its own scale.",
        f'{scale}<div class="grid two">{body}</div>',
    )


def _camera_pictures(panel: Attention) -> str:
    parts = []
    for camera, image in panel.images.items():
        heat = overlay(image, panel.maps[camera], PICTURE_WIDTH)
        for name, picture in ((camera, enlarge(image)), (f"{camera}, attention", heat)):
            alt = escape(f"{name}: {panel.task}", quote=True)
            parts.append(f'<div><img alt="{alt}" src="{png(picture)}"><span>{name}</span></div>')
    return f'<div class="panels">{"".join(parts)}</div>'


def _shares(panel: Attention) -> dict[str, float]:
    return {**{c: float(m.sum()) for c, m in panel.maps.items()}, "instruction": panel.text}


def _shares_note(panel: Attention) -> str:
    words = ", ".join(f"{name} {share:.0%}" for name, share in _shares(panel).items())
    return f"Share of what goes to the prefix: {words}."


def _shares_bar(panel: Attention) -> str:
    bars = "".join(
        f'<i class="c{i}" style="width:{share:.1%}"></i>'
        for i, share in enumerate(_shares(panel).values(), start=1)
    )
    return f'<div class="shares" aria-hidden="true">{bars}</div>'


def enlarge(image: np.ndarray) -> np.ndarray:
    """`image` uint8 [H, W, 3] enlarged by a whole factor to about `PICTURE_WIDTH`, pixels kept."""
    factor = max(1, round(PICTURE_WIDTH / image.shape[1]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def png(image: np.ndarray) -> str:
    """`image` uint8 [H, W, 3] as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
