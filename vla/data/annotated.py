"""A folder of pictures with a JSONL file that says what should be answered about each.

One JSON object a line; the pictures' paths start at the file's folder:

    {"image": "a.jpg", "suffixes": ["a cat on a mat", "a cat sleeps"]}
    {"image": "b.png", "question": "what is on the plate?", "suffix": "an egg", "group": "other"}
    {"images": ["l.jpg", "r.jpg"], "prefix": "answer en both show dogs", "suffix": "True"}
    {"image": "c.jpg", "objects": [{"label": "cat", "box": [12, 40, 200, 180], "mask": "c.png"}]}

image or images   the picture, or several for one prompt
prefix            the whole prompt; or question, from which the task makes one; or neither
suffix, suffixes  the accepted answer or answers
objects           each with label, box [x0, y0, x1, y1] in pixels (x to the right, y down), and
                  optionally mask, a picture that is not 0 inside the object, and crowd, true for a
                  group that counts neither way
group             a kind of question, scored by itself too
set               examples of the same set only count together (NLVR2's sentences)

`image`, `prefix` and `suffix` are big_vision's and Hugging Face's names for PaliGemma's JSONL data.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

FIELDS = ("image", "images", "prefix", "question", "suffix", "suffixes", "objects", "group", "set")
OBJECT_FIELDS = ("label", "box", "mask", "crowd")


@dataclass(frozen=True)
class AnnotatedObject:
    """label: what it is called. box: (x0, y0, x1, y1) in pixels, inside the picture. mask: a file
    of the picture's size, where there is one. crowd: a group that counts neither way.
    """

    label: str
    box: tuple[float, float, float, float]
    mask: Path | None = None
    crowd: bool = False

    def read_mask(self) -> np.ndarray:
        """bool [H, W], True where the file isn't 0 in some channel."""
        assert self.mask is not None, f"{self.label!r} has no mask file"
        with Image.open(self.mask) as picture:
            return (np.asarray(picture.convert("RGB")) > 0).max(axis=2)


@dataclass(frozen=True)
class Annotated:
    """One example; the fields are those of a line, see above. size: (width, height) of its first
    picture in pixels. where: `file:line`, for messages.
    """

    images: tuple[Path, ...]
    size: tuple[int, int]
    where: str
    prefix: str | None = None
    question: str | None = None
    suffixes: tuple[str, ...] = ()
    objects: tuple[AnnotatedObject, ...] = ()
    group: str | None = None
    set: str | None = None

    def read_images(self) -> list[np.ndarray]:
        """The pictures, uint8 RGB [H, W, 3], in their stored orientation."""
        pictures = []
        for path in self.images:
            with Image.open(path) as picture:
                pictures.append(np.asarray(picture.convert("RGB")))
        return pictures


def read_annotated(path: Path) -> tuple[Annotated, ...]:
    """The examples of a JSONL file, or of the only one in a folder, in the file's order.

    Everything is checked before anything is returned: ValueError names the file and the line of the
    first fault (unknown or missing fields, values of another type, boxes outside of the picture,
    pictures that are missing or no pictures). Empty lines are passed over.
    """
    file = _jsonl(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # other breaks may stand inside a text
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected UTF-8 text, {error}") from error
    examples = [
        _example(line, file.parent, f"{file}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not examples:
        raise ValueError(f"{file}: expected at least one line, got an empty file")
    return tuple(examples)


def _jsonl(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise ValueError(f"expected one .jsonl file in {path}, found {names}; give the file itself")
    return found[0]


def _example(line: str, folder: Path, where: str) -> Annotated:
    fields = _object(line, where)
    _check_names(fields, FIELDS, where)
    names = _one_or_many(fields, "image", "images", where)
    if not names:
        raise ValueError(f'{where}: expected "image" or "images", got {_listed(fields)}')
    if "prefix" in fields and "question" in fields:
        raise ValueError(f'{where}: expected "prefix" (the whole prompt) or "question", got both')
    images = tuple(folder / name for name in names)
    sizes = [_size(image, where) for image in images]
    suffixes = _one_or_many(fields, "suffix", "suffixes", where)
    if not suffixes and "objects" not in fields:
        raise ValueError(f'{where}: expected "suffix", "suffixes" or "objects" to compare with')
    text = partial(_text, fields, where=where)
    return Annotated(
        images,
        sizes[0],
        where,
        text("prefix"),
        text("question"),
        suffixes,
        _objects(fields.get("objects", []), folder, sizes[0], where),
        text("group"),
        text("set"),
    )


def _object(line: str, where: str) -> dict[str, Any]:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{where}: {twice[0]!r} is given twice")
        return dict(pairs)

    try:
        value = json.loads(line, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object on one line, {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {line.strip()[:60]!r}")
    return value


def _check_names(fields: dict[str, Any], known: Sequence[str], where: str) -> None:
    for name in fields:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"{where}: unknown field {name!r}, {hint}")


def _one_or_many(fields: dict[str, Any], one: str, many: str, where: str) -> tuple[str, ...]:
    """The texts of `one`, a text, or of `many`, a list of texts; none where both are missing."""
    if one in fields and many in fields:
        raise ValueError(f'{where}: expected "{one}" or "{many}", got both')
    value = fields.get(many, [fields[one]] if one in fields else None)
    if value is None:
        return ()
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        wanted = "a text" if one in fields else "a list of texts, at least one"
        got = fields.get(one, fields.get(many))
        raise ValueError(f'{where}: expected {wanted} as "{one if one in fields else many}", '
                         f"got {got!r}")  # fmt: skip
    return tuple(value)


def _text(fields: dict[str, Any], name: str, where: str) -> str | None:
    if name not in fields:
        return None
    if not isinstance(fields[name], str):
        raise ValueError(f'{where}: expected a text as "{name}", got {fields[name]!r}')
    return fields[name]


def _objects(
    value: Any, folder: Path, size: tuple[int, int], where: str
) -> tuple[AnnotatedObject, ...]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError(f'{where}: expected a list of objects as "objects", got {value!r}')
    objects = []
    for i, fields in enumerate(value):
        here = f"{where}: object {i}"
        _check_names(fields, OBJECT_FIELDS, here)
        label, crowd = _text(fields, "label", here), fields.get("crowd", False)
        if not label or not isinstance(crowd, bool):
            raise ValueError(f'{here}: expected a text as "label" and true or false as "crowd"')
        mask = _text(fields, "mask", here)
        mask_path = None if mask is None else folder / mask
        if mask_path is not None and (got := _size(mask_path, here)) != size:
            raise ValueError(
                f"{here}: expected a mask of {size} pixels like the picture, got {got}"
            )
        objects.append(
            AnnotatedObject(label, _box(fields.get("box"), size, here), mask_path, crowd)
        )
    return tuple(objects)


def _box(value: Any, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 4:
        raise ValueError(f'{where}: expected "box" as four numbers [x0, y0, x1, y1], got {value!r}')
    x0, y0, x1, y1 = (float(v) for v in value)
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise ValueError(
            f"{where}: expected a box [x0, y0, x1, y1] in pixels inside of the picture's "
            f"{size[0]} × {size[1]}, got {value}"
        )
    return x0, y0, x1, y1


def _size(path: Path, where: str) -> tuple[int, int]:
    """(width, height) in pixels, from the file's head."""
    if not path.is_file():
        raise ValueError(f"{where}: no picture at {path}")
    try:
        with Image.open(path) as picture:
            return picture.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{where}: {path} isn't a picture that Pillow can read") from error


def _listed(fields: dict[str, Any]) -> str:
    return ", ".join(fields) or "no fields"
