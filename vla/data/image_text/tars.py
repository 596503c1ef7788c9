"""Examples of WebDataset's tar files, by number: members that share a name up to its first dot.

    0001.jpg  0001.json             a picture and its fields
    0002.png  0002.txt              a picture and its only suffix
    0003.0.jpg  0003.1.jpg  0003.json  0003.cat.png    two pictures; "mask": "cat.png"

A tar is looked through once; where its members lie is kept in `<tar>.index.json` beside it, if that
can be written, and read from there for as long as the tar's size and time are the same.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vla.data.image_text.example import ImageText
from vla.data.image_text.fields import (
    Renames,
    check_renames,
    example,
    mask_picture,
    picture,
    renamed,
)

PICTURES = ("jpg", "jpeg", "png", "webp")
INDEX = ".index.json"

Members = dict[str, tuple[int, int]]  # ending → (offset, bytes)


@dataclass(frozen=True)
class Tars:
    """tars: files, or one folder of them, not compressed. fields: (our name, theirs) of what
    stands in the .json members under other names, e.g. ("suffix", "caption").
    """

    tars: tuple[Path, ...]
    fields: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        check_renames(self.fields)

    def open(self) -> TarExamples:
        """Raises FileNotFoundError for a missing tar; ValueError for one that is damaged, or has an
        example without a picture or without text."""
        files = [f for t in self.tars for f in (sorted(t.glob("*.tar")) if t.is_dir() else [t])]
        if not files:
            raise FileNotFoundError(f"no .tar files in {', '.join(map(str, self.tars))}")
        return TarExamples([(f, index(f)) for f in files], self.fields)


class TarExamples:
    """The examples of several tars one after the other."""

    def __init__(self, indexed: list[tuple[Path, list[tuple[str, Members]]]], renames: Renames):
        self._tars, self._renames = indexed, renames
        self._ends = list(itertools.accumulate(len(examples) for _, examples in indexed))

    @property
    def window(self) -> None:
        """Any order is as good."""

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> ImageText:
        which = bisect.bisect_right(self._ends, index)
        path, examples = self._tars[which]
        key, members = examples[index - self._ends[which] + len(examples)]
        where = f"{path}: {key}"
        shown = [e for e in members if _is_shown(e)]
        pictures = [picture(_read(path, members[e]), where) for e in shown]
        fields = renamed(_fields(path, members, where), self._renames, where)
        return example(fields, pictures, where, partial(_mask, path, members, where))


def index(path: Path) -> list[tuple[str, Members]]:
    """Where the members of each example of a tar lie, in the order of their first ones.

    Raises FileNotFoundError, or ValueError for a file that is no whole, plain tar, and for an
    example without a picture or without text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no tar at {path}")
    known, file = _stamp(path), path.with_name(path.name + INDEX)
    if file.is_file():
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["of"] == known:
            return [(k, {e: (at, n) for e, (at, n) in m.items()}) for k, m in saved["examples"]]
    examples: dict[str, Members] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    stem, _, ending = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    span = (member.offset_data, member.size)
                    examples.setdefault(key, {})[ending.lower()] = span
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not a whole tar without compression ({error}); copy it again, or unzip it"
        ) from error
    for key, members in examples.items():
        if not any(map(_is_shown, members)):
            raise ValueError(
                f"{path}: {key} has no picture, only {', '.join(members)}; pictures end in "
                f"{', '.join(PICTURES)}"
            )
        if not members.keys() & {"json", "txt"}:
            raise ValueError(f"{path}: {key} has no text: expected {key}.json or {key}.txt")
    found = list(examples.items())
    if not found:
        raise ValueError(f"{path} holds no examples")
    _save(file, {"of": known, "examples": found})
    return found


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _save(file: Path, content: dict) -> None:
    if not os.access(file.parent, os.W_OK):
        return
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(file)


def _is_shown(ending: str) -> bool:
    """Whether a member is one of the example's pictures: jpg, or 0.jpg, but not cat.png."""
    first, _, last = ending.rpartition(".")
    return last in PICTURES and (not first or first.isdigit())


def _read(path: Path, span: tuple[int, int]) -> bytes:
    with path.open("rb") as file:
        file.seek(span[0])
        return file.read(span[1])


def _fields(path: Path, members: Members, where: str) -> dict:
    fields = {}
    if "json" in members:
        try:
            fields = json.loads(_read(path, members["json"]))
        except ValueError as error:  # JSON's and UTF-8's errors are such
            raise ValueError(f"{where}: expected a JSON object as .json, {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: expected a JSON object as .json, got {str(fields)[:60]}")
    if "txt" in members:
        fields.setdefault("suffix", _read(path, members["txt"]).decode("utf-8").strip())
    return fields


def _mask(path: Path, members: Members, where: str, name: str) -> np.ndarray:
    if name.lower() not in members:
        raise ValueError(f"{where}: no member {name!r} for a mask, only {', '.join(members)}")
    return mask_picture(_read(path, members[name.lower()]), where)
