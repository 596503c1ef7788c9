"""Boxes and mask codes as PaliGemma writes them: `<loc>`×4, then `<seg>`×16 or none, then a name.

    <loc0256><loc0102><loc0767><loc0920> cat ; <loc…>×4<seg…>×16 dog

The four numbers are y0, x0, y1, x1, each a share of the picture's height or width. Two conventions
are published, and differ by at most 0.1 % of the side:

    BIG_VISION = 1023      `<loc1023>` is the far edge (big_vision's RefCOCO op and evaluator)
    HUGGING_FACE = 1024    `<loc1023>` lies one bin before it (the demo Space and most parsers)

A model is stretched to a square picture before it looks, so shares hold in the original as well.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from backbone.tokenizer import NUM_LOC, NUM_SEG

BIG_VISION = 1023
HUGGING_FACE = 1024

SEG_TOKENS = 16  # a mask is a 4 × 4 grid of codes
SEPARATOR = " ; "
RESERVED = ";<>\n"  # characters that end a name in an answer, so none may hold them


@dataclass(frozen=True)
class Box:
    """A box as shares of the picture's sides: 0 is the left or upper edge, 1 the right or lower.

    x0 <= x1 and y0 <= y1. Values outside [0, 1] are allowed (a box may leave the picture).

    Raises ValueError for a NaN, an infinity or edges in the wrong order.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        values = (self.x0, self.y0, self.x1, self.y1)
        if not all(map(math.isfinite, values)):
            raise ValueError(f"a box needs four finite numbers, got {values}")
        if self.x1 < self.x0 or self.y1 < self.y0:
            raise ValueError(
                f"expected x0 <= x1 and y0 <= y1, got {values}; the order is x0, y0, x1, y1"
            )

    @classmethod
    def from_pixels(
        cls, x0: float, y0: float, x1: float, y1: float, image_size: tuple[int, int]
    ) -> "Box":
        """The box with these edges in pixels of a picture of `image_size` (height, width)."""
        height, width = _positive(image_size)
        return cls(x0 / width, y0 / height, x1 / width, y1 / height)

    @classmethod
    def from_bins(cls, bins: Sequence[int], scale: int = BIG_VISION) -> "Box":
        """The box of four `<loc>` numbers in their order y0, x0, y1, x1."""
        y0, x0, y1, x1 = (b / _checked(scale) for b in bins)
        return cls(x0, y0, x1, y1)

    def pixels(self, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels of a picture of `image_size` (height, width), not rounded."""
        height, width = _positive(image_size)
        return self.x0 * width, self.y0 * height, self.x1 * width, self.y1 * height

    def bins(self, scale: int = BIG_VISION) -> tuple[int, int, int, int]:
        """The numbers of its `<loc>` tokens: y0, x0, y1, x1, rounded (halves to even), clipped."""
        _checked(scale)
        edges = (self.y0, self.x0, self.y1, self.x1)
        y0, x0, y1, x1 = (min(max(round(edge * scale), 0), NUM_LOC - 1) for edge in edges)
        return y0, x0, y1, x1

    def text(self, scale: int = BIG_VISION) -> str:
        """Its four `<loc>` tokens."""
        return "".join(f"<loc{b:04d}>" for b in self.bins(scale))


@dataclass(frozen=True)
class Detection:
    """One thing found in a picture.

    name: what it is called; "" where the answer names nothing, as after RefCOCO's prompts.
    codes: the 16 mask codes (0..127, rows of a 4 × 4 grid) that `MaskCodec.decode` draws within
        the box; None for a box alone.

    Raises ValueError for codes of another number or range.
    """

    name: str
    box: Box
    codes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        codes = self.codes
        if codes is None:
            return
        if len(codes) != SEG_TOKENS or not all(0 <= c < NUM_SEG for c in codes):
            raise ValueError(
                f"a mask has {SEG_TOKENS} codes from 0 to {NUM_SEG - 1}, got {list(codes)}"
            )


@dataclass(frozen=True)
class Parsed:
    """items: what was well-formed, in order. dropped: for every other piece, what it was and why
    it was left out, as text for people."""

    items: tuple[Detection, ...]
    dropped: tuple[str, ...]


def detection_answer(detections: Sequence[Detection], scale: int = BIG_VISION) -> str:
    """The answer to "detect …" or "segment …" that names these things; "" for none.

    Raises ValueError for a name that would not be read back: see `check_name`.
    """
    return SEPARATOR.join(_one_answer(detection, scale) for detection in detections)


def check_name(name: str) -> str:
    """`name` itself, if PaliGemma's grammar can carry it.

    Raises ValueError where it is empty, starts or ends with white space (another token), or holds
    `;`, `<`, `>` or a newline, which end a name.
    """
    if not name.strip():
        raise ValueError("a thing needs a name, got an empty one; leave it out or name it")
    if name != name.strip():
        raise ValueError(f"{name!r} has white space around it; use {name.strip()!r}")
    held = [c for c in RESERVED if c in name]
    if held:
        raise ValueError(
            f"the name {name!r} holds {held[0]!r}, which ends a name in PaliGemma's answers; "
            "give several things as several names, and leave the sign out of a single one"
        )
    return name


def parse_detections(text: str, scale: int = BIG_VISION) -> Parsed:
    """Reads an answer to "detect …" or "segment …", whatever a model has made of it.

    Never raises for any text. As in the public parsers, separators may be missing, names may be,
    and of more than four `<loc>` in a row every four are a box, the last of which gets the name.
    Ours differs in that
      - a box without extent (y1 <= y0 or x1 <= x0) is dropped, as big_vision's evaluator drops it;
      - a box keeps its name where its mask is cut short: `codes` is None, and `dropped` says so;
      - the rest after `<eos>` is not read.

    Raises ValueError if `scale` is neither 1023 nor 1024.
    """
    _checked(scale)
    text = text.partition("<eos>")[0]
    items: list[Detection] = []
    dropped: list[str] = []
    end = 0
    for match in _ITEM.finditer(text):
        dropped += _stray(text[end : match.start()])
        for found, why in _boxes(match, scale):
            items += [] if found is None else [found]
            dropped += [] if why is None else [why]
        end = match.end()
    dropped += _stray(text[end:])
    return Parsed(tuple(items), tuple(dropped))


_ITEM = re.compile(r"((?:<loc[0-9]{4}>)+)\s*((?:<seg[0-9]{3}>)*)\s*([^;<>\n]*)")


def _boxes(match: re.Match[str], scale: int) -> list[tuple[Detection | None, str | None]]:
    """What one run of `<loc>` and the codes and name after it hold: (thing, complaint) pairs."""
    locs, segs, name = match.groups()
    bins = _numbers(locs)
    runs = [bins[i : i + 4] for i in range(0, len(bins), 4)]
    found = [_box(run, scale) for run in runs]
    last = len(runs) - 1
    result: list[tuple[Detection | None, str | None]] = []
    for i, (box, why) in enumerate(found):
        if box is None:
            piece = "".join(f"<loc{b:04d}>" for b in runs[i])
            piece += f"{segs} {name}".rstrip() if i == last else ""
            result.append((None, f"{_short(piece)}: {why}"))
        elif i < last:
            result.append((Detection("", box), None))
        else:
            codes, why = _codes(segs)
            result.append((Detection(name.strip(), box, codes), why))
    return result


def _box(bins: list[int], scale: int) -> tuple[Box | None, str | None]:
    if len(bins) < 4:
        return None, f"{len(bins)} <loc> where 4 belong"
    if max(bins) >= NUM_LOC:
        return None, f"<loc{max(bins)}> is beyond <loc{NUM_LOC - 1}>"
    y0, x0, y1, x1 = bins
    if y1 <= y0 or x1 <= x0:
        return None, "a box without extent"
    return Box.from_bins(bins, scale), None


def _codes(segs: str) -> tuple[tuple[int, ...] | None, str | None]:
    codes = _numbers(segs)
    if not codes:
        return None, None
    if len(codes) < SEG_TOKENS:
        return None, f"{_short(segs)}: {len(codes)} <seg> where {SEG_TOKENS} belong"
    if max(codes[:SEG_TOKENS]) >= NUM_SEG:
        return None, f"{_short(segs)}: <seg{max(codes)}> is beyond <seg{NUM_SEG - 1}>"
    extra = len(codes) - SEG_TOKENS
    why = f"{_short(segs)}: {extra} <seg> after the {SEG_TOKENS} of a mask" if extra else None
    return tuple(codes[:SEG_TOKENS]), why


def _one_answer(detection: Detection, scale: int) -> str:
    codes = "".join(f"<seg{c:03d}>" for c in detection.codes or ())
    name = f" {check_name(detection.name)}" if detection.name else ""
    return detection.box.text(scale) + codes + name


def _numbers(tokens: str) -> list[int]:
    return [int(digits) for digits in re.findall("[0-9]+", tokens)]


def _stray(piece: str) -> list[str]:
    piece = piece.strip("; \t\n")
    return [f"{_short(piece)}: no <loc> before it"] if piece else []


def _short(piece: str, most: int = 60) -> str:
    return repr(piece if len(piece) <= most else piece[: most - 1] + "…")


def _checked(scale: int) -> int:
    if scale not in (BIG_VISION, HUGGING_FACE):
        raise ValueError(
            f"<loc> numbers count {BIG_VISION} (BIG_VISION) or {HUGGING_FACE} (HUGGING_FACE) "
            f"parts of a side, got {scale}"
        )
    return scale


def _positive(image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size is (height, width) in pixels, got {image_size}")
    return height, width
