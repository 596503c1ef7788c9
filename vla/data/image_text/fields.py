"""Examples of files that other programs wrote: their names for things, turned into ours."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vla.data.annotated import OBJECT_FIELDS, box_field, check_names, text_fields
from vla.data.image_text.example import ImageText, Thing

TEXT_FIELDS = (
    *("prefix", "question", "suffix", "suffixes", "lang", "captions", "snippets", "absent"),
    "objects",
)
Renames = Sequence[tuple[str, str]]  # (our name, theirs)


def check_renames(renames: Renames) -> None:
    """Raises ValueError for a name that isn't one of ours."""
    for ours, _ in renames:
        name = ours.partition(".")[0]
        if name not in TEXT_FIELDS or (name != ours and name != "captions"):
            close = get_close_matches(ours, TEXT_FIELDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(TEXT_FIELDS)}"
            raise ValueError(f"unknown field {ours!r} in fields; {hint}")


def renamed(row: Mapping[str, Any], renames: Renames, where: str) -> dict[str, Any]:
    """The fields of a row that are ours by name, or that `renames` gives our names, without those
    that are None. "captions.de" is the German caption.

    Raises ValueError if a field of theirs is missing.
    """
    taken = {theirs for _, theirs in renames}
    found = {
        name: row[name] for name in TEXT_FIELDS if name not in taken and row.get(name) is not None
    }
    for ours, theirs in renames:
        if theirs not in row:
            close = get_close_matches(theirs, row, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(row)}"
            raise ValueError(f"{where}: no field {theirs!r}; {hint}")
        name, _, lang = ours.partition(".")
        if row[theirs] is None:
            continue
        if lang:
            found["captions"] = {**found.get("captions", {}), lang: row[theirs]}
        else:
            found[name] = row[theirs]
    return found


def example(
    fields: dict[str, Any],
    pictures: Sequence[np.ndarray],
    where: str,
    mask: Callable[[str], np.ndarray] | None = None,
) -> ImageText:
    """An example of our fields, checked. mask: reads what an object's "mask" names, bool [H, W].

    Raises ValueError, with `where`, as `read_annotated` does.
    """
    if not pictures:
        raise ValueError(f"{where}: there is no picture; leave the example out, or add its picture")
    objects = fields.get("objects", [])
    if not isinstance(objects, list) or not all(isinstance(o, dict) for o in objects):
        raise ValueError(f'{where}: expected a list of objects as "objects", got {objects!r}')
    height, width = pictures[0].shape[:2]
    things = []
    for i, each in enumerate(objects):
        here = f"{where}: object {i}"
        check_names(each, OBJECT_FIELDS, here)
        if not isinstance(each.get("label"), str) or not each["label"]:
            raise ValueError(f'{here}: expected a text as "label", got {each.get("label")!r}')
        if each.get("crowd"):
            continue
        named = each.get("mask")
        read = None if named is None or mask is None else partial(mask, named)
        box = box_field(each.get("box"), (width, height), here)
        things.append(Thing(each["label"], box, read))
    texts = text_fields(fields, where)
    return ImageText(tuple(pictures), where, things=tuple(things), **texts)


def picture(data: bytes, where: str) -> np.ndarray:
    """uint8 RGB [H, W, 3] of an encoded picture. Raises ValueError if it is none."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{where}: a picture that Pillow can't read ({error})") from error


def mask_picture(data: bytes, where: str) -> np.ndarray:
    """bool [H, W], True where an encoded picture isn't 0 in some channel."""
    return (picture(data, where) > 0).max(axis=2)
