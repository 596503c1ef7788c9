"""`vla dedup`: training pictures that are nearly some of an evaluation set's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from backbone.paligemma import PaliGemma
from backbone.pretrained import load_model
from vla.data.annotated import find_jsonl, read_annotated
from vla.data.duplicates import Prints, Search, joined, matches, prints
from vla.data.image_text.example import ImageTexts
from vla.data.image_text.hugging_face import HuggingFace
from vla.data.image_text.tars import Tars

__all__ = ["Report", "dedup", "write_kept"]

LOT = 256  # pictures in memory

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True)
class Report:
    """train, against: sets and how many pictures they hold. found: rows of duplicates, each with
    the names of both pictures. examples: the numbers of the training examples that have one.
    """

    train: tuple[str, int]
    against: tuple[tuple[str, int], ...]
    search: Search
    model: str | None
    found: tuple[dict[str, Any], ...]
    examples: tuple[int, ...]

    def table(self) -> str:
        """Text: for each evaluation set, its pictures and how many training ones are near them."""
        counts = Counter(row["set"] for row in self.found)
        rows = [
            (name, str(total), str(counts[name]), f"{100 * counts[name] / self.train[1]:.2f} %")
            for name, total in self.against
        ]
        heads = ("against", "pictures", "duplicates", f"of {self.train[1]} in {self.train[0]}")
        wide = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, wide, strict=True)) for r in (heads, *rows)
        ]
        return "\n".join(line.rstrip() for line in lines)

    def save(self, path: Path) -> None:
        """As JSON, complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)


def dedup(
    train: Path,
    against: Sequence[Path],
    search: Search,
    model: Path | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> Report:
    """Look for pictures of `train` that are nearly some of `against`.

    A set is a JSONL file or a folder with one, a tar or a folder of them, a parquet file, or a
    folder of pictures, subfolders included. model: a PaliGemma whose image encoder is asked about
    doubtful pairs; None: hashes alone.
    Raises FileNotFoundError or ValueError for a set that can't be read.
    """
    encoder = None if model is None else load_model(model).eval().to(device)
    sets = [(str(path), _prints_of(path, encoder, progress)) for path in against]
    found, total = [], 0
    for lot in _lots(train, progress):
        total += len(lot)
        ours = prints([picture for _, _, picture in lot], encoder)
        for name, (names, others) in sets:
            for match in matches(ours, others, search):
                place, example, _ = lot[match.ours]
                scores = {k: v for k, v in asdict(match).items() if k not in ("ours", "other")}
                places = {"train": place, "example": example, "other": names[match.other]}
                found.append({"set": name, **places, **scores})
    examples = tuple(sorted({row["example"] for row in found}))
    counts = tuple((name, len(names)) for name, (names, _) in sets)
    asked = None if model is None else str(model)
    return Report((str(train), total), counts, search, asked, tuple(found), examples)


def _prints_of(path: Path, encoder: PaliGemma | None, progress: bool) -> tuple[list[str], Prints]:
    names, parts = [], []
    for lot in _lots(path, progress):
        names += [name for name, _, _ in lot]
        parts.append(prints([picture for _, _, picture in lot], encoder))
    return names, joined(parts)


def _lots(path: Path, progress: bool) -> Iterator[list[tuple[str, int, np.ndarray]]]:
    """A set's pictures, `LOT` at a time. Raises ValueError if it has none."""
    bar = iter(tqdm(_pictures(path), f"looking at {path}", disable=None if progress else True))
    some = False
    while lot := list(islice(bar, LOT)):
        some = True
        yield lot
    if not some:
        raise ValueError(f"{path} holds no pictures")


def write_kept(train: Path, report: Report, target: Path) -> int:
    """Write the lines of the JSONL file `train` that have no duplicate to `target`, which has to
    lie in the same folder; returns how many.

    Raises ValueError for another kind of set or another folder.
    """
    if not _is_lines(train):
        raise ValueError(f"{train} is no JSONL file, so --keep can't write what is left of it")
    source = find_jsonl(train)
    if target.resolve().parent != source.resolve().parent:
        raise ValueError(
            f"{target} has to lie beside {source}: its pictures are named from its folder"
        )
    lines = [line for line in source.read_text(encoding="utf-8").split("\n") if line.strip()]
    kept = [line for i, line in enumerate(lines) if i not in set(report.examples)]
    temporary = target.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(target)
    return len(kept)


def _is_lines(path: Path) -> bool:
    return path.suffix == ".jsonl" or (path.is_dir() and any(path.glob("*.jsonl")))


def _pictures(path: Path) -> Iterator[tuple[str, int, np.ndarray]]:
    """(name, number of its example, uint8 RGB) of every picture of a set."""
    if not path.exists():
        raise FileNotFoundError(f"no pictures at {path}: there is no such file or folder")
    if _is_lines(path):
        for i, example in enumerate(read_annotated(path)):
            pictures = example.read_images()
            names = example.images or (example.video,) * len(pictures)
            for name, picture in zip(names, pictures, strict=True):
                yield str(name), i, picture
    elif path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        yield from _examples(Tars((path,)).open())
    elif path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        yield from _examples(HuggingFace(str(path)).open())
    elif path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in ENDINGS)
        for i, file in enumerate(files):
            with Image.open(file) as opened:
                yield str(file), i, np.asarray(opened.convert("RGB"))
    else:
        raise ValueError(
            f"{path} is no set of pictures: give a JSONL file, a tar, a parquet file or a folder"
        )


def _examples(texts: ImageTexts) -> Iterator[tuple[str, int, np.ndarray]]:
    for i in range(len(texts)):
        example = texts[i]
        for k, picture in enumerate(example.pictures):
            yield example.where + (f", picture {k + 1}" if k else ""), i, picture
