"""The variants of one switch, trained from the same seeds and put side by side."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backbone.detections import Box, parse_detections
from backbone.pretrained import load_pretrained
from backbone.vlm import VLM
from vla.ablation.cotrain import policy_score
from vla.ablation.switches import Sources, variants
from vla.config import overridden
from vla.data.examples import TabletopData
from vla.data.text import collate_text, without_task
from vla.metrics import box_iou
from vla.training.log import METRICS
from vla.training.loop import train
from vla.training.stage_job import StageConfig

__all__ = ["ablate", "table"]

UNSEEN = 2_000_000  # added to the seed: scenes that neither training nor validation draws
BATCH = 16
LONG = {"max_new_tokens": 64}
Row = dict[str, Any]


def ablate(
    name: str,
    folder: Path,
    *,
    sources: Sources | None = None,
    steps: int = 1000,
    seeds: int = 1,
    minutes: float | None = None,
    examples: int = 200,
    overrides: Iterable[str] = (),
) -> list[Row]:
    """Train every variant of switch `name` with seeds 0 … `seeds` − 1, score it, compare.

    minutes: no run is started that, if it took as long as the longest so far, would end later than
    this; rows tell how many seeds they have. examples: held-out examples of each kind that
    variants are scored on. overrides: fields of all runs, as on a command line.
    Writes results.json after each run, so that a killed call goes on where it was; then
    ablation.json, ablation.md and ablation.png. Returns the rows: variant, seeds, and for each
    measure its mean and spread (None for one seed).
    Raises as `variants` and `train` do, ImportError without matplotlib, before anything is trained.
    """
    _pyplot()
    words, began, longest = list(overrides), time.monotonic(), 0.0
    runs = variants(name, sources or Sources(), steps)
    stored = folder / "results.json"
    results: dict[str, dict[str, float]] = {}
    if stored.is_file():
        results = json.loads(stored.read_text(encoding="utf-8"))
    for seed in range(seeds):
        for variant, run in runs.items():
            key = f"{variant}/{seed}"
            now = time.monotonic() - began
            if key in results or (minutes is not None and now + longest >= 60 * minutes):
                continue
            where = folder / variant.replace(" ", "-").replace("/", "-") / f"seed{seed}"
            config = overridden(replace(run, output_dir=where, seed=seed), words, "vla ablate")
            result = train(config, resume=True)
            if isinstance(config, StageConfig):
                results[key] = _score(config, result, examples)
            else:
                results[key] = policy_score(config, result, examples)
            _write(stored, results)
            longest = max(longest, time.monotonic() - began - now)
    if not results:
        raise ValueError(f"no run fits into {minutes:g} minutes; give more with --minutes")
    rows = _rows(list(runs), seeds, results)
    _write(folder / "ablation.json", {"switch": name, "steps": steps, "rows": rows})
    (folder / "ablation.md").write_text(table(rows), encoding="utf-8")
    _draw(folder, list(runs), seeds, name)
    return rows


def _score(config: StageConfig, folder: Path, count: int) -> dict[str, float]:
    """On scenes never seen: the loss on answers alone; how often whole answers are right; the share
    of things that "detect" asked for whose box overlaps the true one by half (IoU)."""
    model, tokenizer = load_pretrained(folder)
    vlm = VLM(model, tokenizer)
    seed = config.seed + UNSEEN
    scores: dict[str, float] = {}
    losses = []
    for kind in ("question", "caption", "detect"):
        scenes = TabletopData(((kind, 1.0),)).training(model.config, seed)
        asked = [scenes[i] for i in range(count)]
        if not config.task_prefix:
            asked = [replace(e, prompt=without_task(e.prompt)) for e in asked]
        for at in range(0, count, BATCH):
            part = asked[at : at + BATCH]
            with torch.no_grad():
                losses += [model(collate_text(part, tokenizer)).item()] * len(part)
        said = vlm.generate([list(e.images) for e in asked], [e.prompt for e in asked], **LONG)
        pairs = list(zip(said, (e.answer for e in asked), strict=True))
        if kind == "detect":
            scores["boxes found"] = statistics.fmean(x for pair in pairs for x in _found(*pair))
        else:
            scores[f"{kind}s right"] = statistics.fmean(text == answer for text, answer in pairs)
    return {"answer loss": statistics.fmean(losses), **scores}


def _found(text: str, answer: str) -> Iterator[bool]:
    """For each thing of the right `answer`, whether `text` puts it where it is."""
    said = {item.name: item.box for item in parse_detections(text).items}
    for item in parse_detections(answer).items:
        box = said.get(item.name)
        yield box is not None and box_iou(_edges(box), _edges(item.box)) >= 0.5


def _edges(box: Box) -> tuple[float, float, float, float]:
    return box.x0, box.y0, box.x1, box.y1


def _rows(names: Sequence[str], seeds: int, results: Mapping[str, dict[str, float]]) -> list[Row]:
    rows: list[Row] = []
    for name in names:
        found = [results[key] for s in range(seeds) if (key := f"{name}/{s}") in results]
        row: Row = {"variant": name, "seeds": len(found)}
        for measure in found[0] if found else ():
            values = [each[measure] for each in found]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[measure] = {"mean": statistics.fmean(values), "spread": spread, "values": values}
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows in markdown: mean ± standard deviation over seeds."""
    measures = [key for key in max(rows, key=len) if key not in ("variant", "seeds")]
    lines = [["", "seeds", *measures], ["---"] * (len(measures) + 2)]
    for row in rows:
        cells = [_cell(row[m]) if m in row else "not run" for m in measures]
        lines.append([row["variant"], str(row["seeds"]), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: Mapping[str, Any]) -> str:
    spread = "" if value["spread"] is None else f" ± {value['spread']:.3f}"
    return f"{value['mean']:.3f}{spread}"


def _draw(folder: Path, names: Sequence[str], seeds: int, switch: str) -> None:
    """Validation loss against steps, a line for each seed, a colour for each variant."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for k, name in enumerate(names):
        for seed in range(seeds):
            path = folder / name.replace(" ", "-").replace("/", "-") / f"seed{seed}" / METRICS
            if not path.is_file():
                continue
            reports = [json.loads(line) for line in path.read_text().splitlines()]
            points = [(r["step"], r["validation_loss"]) for r in reports if "validation_loss" in r]
            label = name if seed == 0 else None
            axes.plot(*zip(*points, strict=True), color=f"C{k}", label=label, linewidth=1.3)
    axes.set(xlabel="step", ylabel="validation loss", title=switch)
    axes.legend(frameon=False)
    figure.tight_layout()
    temporary = folder / "ablation.tmp.png"
    figure.savefig(temporary, dpi=140)
    plt.close(figure)
    temporary.replace(folder / "ablation.png")


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("vla ablate draws with matplotlib; install vla[viz]") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
