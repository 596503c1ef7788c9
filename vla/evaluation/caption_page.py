"""How well a model captions pictures in each language, those it was trained on and others."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbone import tasks
from backbone.vlm import VLM
from vla.data.annotated import Annotated, read_annotated
from vla.evaluation.svg import Series, legend, line_chart
from vla.metrics.cider import cider_d
from vla.metrics.ptb import caption_words

__all__ = ["caption_words_of", "score_captions"]

SPLITS = {"train": "seen", "val": "unseen"}
UNSPACED = ("ja", "zh", "th")  # written without spaces: characters are compared
SHOWN = 24  # pictures of each split on the page
BATCH = 32
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: left }
tr + tr { border-top: 1px solid #ddd } .grid { display: grid; gap: 1.5em;
grid-template-columns: repeat(auto-fill, minmax(20em, 1fr)) } .grid img { height: 96px }
.truth { color: #777 } svg { max-width: 40em } svg text { font-size: 11px }
svg path, svg polyline { fill: none; stroke: #36c }
"""


def caption_words_of(lang: str, text: str) -> list[str]:
    """What CIDEr-D counts of a caption: words, or characters in Japanese, Chinese and Thai."""
    if lang in UNSPACED:
        return [c for c in text if c.isalnum()]
    return caption_words(text)


def score_captions(
    data: Path,
    model: Path,
    folder: Path,
    *,
    langs: Sequence[str] | None = None,
    limit: int = 200,
    device: str = "cpu",
    run: Path | None = None,
) -> str:
    """Caption up to `limit` pictures of each split, greedily, in every language, and write
    scores.json, captions.jsonl and index.html to `folder`; returns the table of CIDEr-D.

    Files are sorted by what is to be seen, so that pictures are taken evenly from all over them.

    data: folder of train.jsonl and val.jsonl, whose lines have captions. langs: None: all that
    occur. run: the folder of a training run, whose losses are drawn.
    Raises ValueError for a split without captions in these languages.
    """
    vlm = VLM.from_pretrained(model, device=device, dtype="float32")
    rows, scores = [], []
    for split, name in SPLITS.items():
        examples = spread([e for e in read_annotated(data / f"{split}.jsonl") if e.captions], limit)
        wanted = langs or sorted({lang for e in examples for lang in e.captions})
        for lang in wanted:
            tasks.check_language(lang)
            some = [e for e in examples if lang in e.captions]
            if not some:
                raise ValueError(f"{data / f'{split}.jsonl'} has no captions in {lang!r}")
            said = _said(vlm, some, lang)
            truth = [e.captions[lang] for e in some]
            score = cider_d(said, truth, lambda text, lang=lang: caption_words_of(lang, text))
            scores.append(
                {"split": name, "lang": lang, "cider_d": score.value, "pictures": len(some)}
            )
            rows += [
                {"split": name, "lang": lang, "image": str(e.images[0]), "said": s, "truth": t}
                for e, s, t in zip(some, said, truth, strict=True)
            ]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _write(folder / "captions.jsonl", lines)
    _write(folder / "index.html", _page(rows, scores, _losses(run)))
    return _table(scores)


def spread[T](items: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, at equal distances and in their order."""
    count = min(most, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def _said(vlm: VLM, examples: Sequence[Annotated], lang: str) -> list[str]:
    texts, prompt = [], tasks.caption(lang)
    for first in range(0, len(examples), BATCH):
        some = examples[first : first + BATCH]
        images = [e.read_images() for e in some]
        texts += vlm.generate(images, [prompt] * len(some), max_new_tokens=96)
    return texts


def _table(scores: list[dict[str, Any]]) -> str:
    langs = list(dict.fromkeys(s["lang"] for s in scores))
    found = {(s["split"], s["lang"]): s["cider_d"] for s in scores}
    lines = ["CIDEr-D  " + "  ".join(f"{split:>6}" for split in SPLITS.values())]
    for lang in langs:
        values = [found.get((split, lang)) for split in SPLITS.values()]
        cells = ("     –" if v is None else f"{v:6.3f}" for v in values)
        lines.append(f"{lang:<7}  " + "  ".join(cells))
    return "\n".join(lines)


def _losses(run: Path | None) -> str:
    if run is None:
        return ""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    series = []
    for name, label in (("loss", "seen"), ("validation_loss", "unseen")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            x, y = zip(*points, strict=True)
            colour = len(series) + 1
            series.append(Series(label, np.array(x), np.array(y), colour=colour))
    chart = line_chart(series, x_label="step", y_label="loss", label="text loss by step")
    return f"<h2>Loss</h2>{chart}{legend(series)}"


def _page(rows: list[dict[str, Any]], scores: list[dict[str, Any]], losses: str) -> str:
    parts = [f"<h2>CIDEr-D</h2><pre>{escape(_table(scores))}</pre>", losses]
    for split in SPLITS.values():
        some = [row for row in rows if row["split"] == split]
        images = list(dict.fromkeys(row["image"] for row in some))
        every = max(1, len(images) // SHOWN)
        cards = [_card([row for row in some if row["image"] == image]) for image in images[::every]]
        parts.append(
            f'<h2>Pictures {split} in training</h2><div class="grid">{"".join(cards)}</div>'
        )
    head = f'<!doctype html><meta charset="utf-8"><title>Captions</title><style>{STYLE}</style>'
    return f"{head}<h1>Captions</h1>{''.join(parts)}\n"


def _card(rows: list[dict[str, Any]]) -> str:
    with Image.open(rows[0]["image"]) as opened:
        data = io.BytesIO()
        opened.convert("RGB").save(data, "JPEG", quality=80)
    source = base64.b64encode(data.getvalue()).decode()
    said = "".join(
        f'<div lang="{row["lang"]}"><b>{row["lang"]}</b> {escape(row["said"])} '
        f'<span class="truth">({escape(row["truth"][0])})</span></div>'
        for row in rows
    )
    name = escape(Path(rows[0]["image"]).stem)
    return f'<div><img src="data:image/jpeg;base64,{source}" alt="{name}">{said}</div>'


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
