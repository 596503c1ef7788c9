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
lang              the language of the suffixes, "en" unless it is given
captions          {"en": "a cat", "de": ["eine Katze", …]}, by the language's code
snippets          all texts in the picture, row by row
absent            names of things that are known not to be in the picture
video             instead of the picture: a film, whose frames are the pictures
group             a kind of question, scored by itself too
set               examples of the same set only count together (NLVR2's sentences)

`image`, `prefix` and `suffix` are big_vision's and Hugging Face's names for PaliGemma's JSONL data.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from backbone import tasks

# fmt: off
FIELDS = (
    "image", "images", "video", "prefix", "question", "suffix", "suffixes", "objects",
    "lang", "captions", "snippets", "absent", "group", "set",
)
# fmt: on
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
    picture in pixels; (0, 0) for a film. where: `file:line`, for messages.
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
    lang: str | None = None
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    snippets: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    video: Path | None = None

    def read_images(self) -> list[np.ndarray]:
        """The pictures, or the film's frames, uint8 RGB [H, W, 3], in their stored orientation."""
        if self.video is not None:
            return read_frames(self.video, self.where)
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
    file = find_jsonl(path)
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


def find_jsonl(path: Path) -> Path:
    """A JSONL file itself, or the only one of a folder. Raises ValueError if there is none."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise ValueError(f"expected one .jsonl file in {path}, found {names}; give the file itself")
    return found[0]


def _example(line: str, folder: Path, where: str) -> Annotated:
    fields = _object(line, where)
    check_names(fields, FIELDS, where)
    names = one_or_many(fields, "image", "images", where)
    if not names and "video" not in fields:
        raise ValueError(f'{where}: expected "image", "images" or "video", got {_listed(fields)}')
    if names and "video" in fields:
        raise ValueError(f'{where}: expected pictures or "video", got both')
    images = tuple(folder / name for name in names)
    sizes = [_size(image, where) for image in images] or [(0, 0)]
    texts = text_fields(fields, where)
    if not (texts.keys() & {"suffixes", "captions", "snippets"}) and "objects" not in fields:
        raise ValueError(
            f'{where}: expected "suffix", "suffixes", "captions", "snippets" or "objects" to '
            "compare with"
        )
    text = partial(_text, fields, where=where)
    return Annotated(
        images,
        sizes[0],
        where,
        objects=_objects(fields.get("objects", []), folder, sizes[0], where),
        group=text("group"),
        set=text("set"),
        video=_video(text("video"), folder, where),
        **texts,
    )


def text_fields(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of `Annotated` that are texts, those that are given.

    Raises ValueError, with `where`, for a value of another type, a prefix beside a question, or a
    language that PaliGemma's grammar does not know.
    """
    if "prefix" in fields and "question" in fields:
        raise ValueError(f'{where}: expected "prefix" (the whole prompt) or "question", got both')
    found: dict[str, Any] = {
        name: _text(fields, name, where)
        for name in ("prefix", "question", "lang")
        if name in fields
    }
    if "suffix" in fields or "suffixes" in fields:
        found["suffixes"] = one_or_many(fields, "suffix", "suffixes", where)
    for name in ("snippets", "absent"):
        if name in fields:
            found[name] = some_texts(fields[name], name, where)
    if "captions" in fields:
        value = fields["captions"]
        if not isinstance(value, dict) or not value:
            raise ValueError(f'{where}: expected {{"en": "a cat", …}} as "captions", got {value!r}')
        found["captions"] = {
            lang: some_texts(texts, f"captions.{lang}", where, single=True)
            for lang, texts in value.items()
        }
    for lang in (found.get("lang"), *found.get("captions", ())):
        if lang is not None:
            try:
                tasks.check_language(lang)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
    return found


def read_frames(path: Path, where: str) -> list[np.ndarray]:
    """All frames of a film, uint8 RGB [H, W, 3].

    Raises ValueError, with `where`, if it can't be read.
    """
    import av
    from av.error import FFmpegError

    frames = []
    try:
        with av.open(str(path)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    except (FFmpegError, IndexError) as error:  # IndexError: sound without pictures
        raise ValueError(f"{where}: {path} isn't a film that can be read ({error})") from error
    if not frames:
        raise ValueError(f"{where}: {path} has no frames")
    return frames


def _video(name: str | None, folder: Path, where: str) -> Path | None:
    if name is not None and not (folder / name).is_file():
        raise ValueError(f"{where}: no film at {folder / name}")
    return None if name is None else folder / name


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


def check_names(fields: dict[str, Any], known: Sequence[str], where: str) -> None:
    for name in fields:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"{where}: unknown field {name!r}, {hint}")


def one_or_many(fields: dict[str, Any], one: str, many: str, where: str) -> tuple[str, ...]:
    """The texts of `one`, a text, or of `many`, a list of texts; none where both are missing."""
    if one in fields and many in fields:
        raise ValueError(f'{where}: expected "{one}" or "{many}", got both')
    if one in fields:
        if not isinstance(fields[one], str):
            raise ValueError(f'{where}: expected a text as "{one}", got {fields[one]!r}')
        return (fields[one],)
    return some_texts(fields[many], many, where) if many in fields else ()


def some_texts(value: Any, name: str, where: str, single: bool = False) -> tuple[str, ...]:
    """`value`, a list of at least one text, or with `single` a text alone too."""
    texts = [value] if isinstance(value, str) and single else value
    if not isinstance(texts, list) or not texts or not all(isinstance(v, str) for v in texts):
        wanted = "a text or a list of them" if single else "a list of texts, at least one"
        raise ValueError(f'{where}: expected {wanted} as "{name}", got {value!r}')
    return tuple(texts)


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
        check_names(fields, OBJECT_FIELDS, here)
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
            AnnotatedObject(label, box_field(fields.get("box"), size, here), mask_path, crowd)
        )
    return tuple(objects)


def box_field(value: Any, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
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
