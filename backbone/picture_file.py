"""Opening picture files that nobody vouches for."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SAFE_FORMATS = ("JPEG", "PNG", "WEBP")
STILL_FORMATS = (*SAFE_FORMATS, "GIF", "BMP")  # for files of one's own

# What Pillow's decoders raise for damaged files, besides OSError for most of them.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class PictureLimits:
    """Checked before a pixel is decoded. bytes: of the file. pixels: width × height, decoded at 3
    bytes each. aspect: longer by shorter side. formats: Pillow's names of those that are read."""

    bytes: int = 10 * 2**20
    pixels: int = 16_800_000
    aspect: float = 20
    formats: tuple[str, ...] = SAFE_FORMATS


PICTURE_LIMITS = PictureLimits()


def open_picture(
    source: Path | str | bytes, limits: PictureLimits = PICTURE_LIMITS, name: str | None = None
) -> np.ndarray:
    """A picture as uint8 RGB [H, W, 3], upright.

    source: a file, or what stands in one. name: what errors call it; else the file's.

    Turned as its EXIF orientation says; the first frame of an animation; CMYK, palettes and grey
    become RGB; 16 bits become 8 (divided by 257); an alpha channel is dropped, not blended.

    Raises FileNotFoundError (or another OSError) where there is no file to read, ValueError where
    it is beyond `limits`, damaged, cut short, or no picture.
    """
    name = name or ("the picture" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _read(Path(source), limits, name)
    if not data:
        raise ValueError(f"{name} is empty, expected a picture")
    if len(data) > limits.bytes:
        raise ValueError(f"{name} has {len(data):,} bytes, at most {limits.bytes:,} are read")
    picture = _header(data, limits, name)
    _check_size(picture.size, limits, name)
    try:
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return np.array(_eight_bits(picture).convert("RGB"))
    except DAMAGED as error:
        raise ValueError(f"{name} is damaged or cut short ({error}); copy it again") from error


def _read(path: Path, limits: PictureLimits, name: str) -> bytes:
    with path.open("rb") as file:
        return file.read(limits.bytes + 1)


def _header(data: bytes, limits: PictureLimits, name: str) -> Image.Image:
    wanted = ", ".join(limits.formats)
    try:
        with warnings.catch_warnings():  # `_check_size` is stricter and says it better
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(BytesIO(data), formats=limits.formats)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} has more pixels than Pillow opens; at most {limits.pixels:,} are read"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is no picture that can be read, expected {wanted}") from error
    except DAMAGED as error:
        raise ValueError(f"{name} is damaged or cut short ({error}); copy it again") from error


def _check_size(size: tuple[int, int], limits: PictureLimits, name: str) -> None:
    width, height = size
    if min(size) < 1:
        raise ValueError(f"{name} is {width} × {height} pixels, expected at least 1 × 1")
    if width * height > limits.pixels:
        raise ValueError(
            f"{name} is {width} × {height} pixels, at most {limits.pixels:,} in all are read; "
            "make it smaller"
        )
    if max(size) > limits.aspect * min(size):
        raise ValueError(
            f"{name} is {width} × {height} pixels, longer than {limits.aspect:g} : 1; cut it"
        )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greys of 16 bits (PNG), which Pillow would clip at 255."""
    if picture.mode not in ("I", "I;16", "I;16B", "I;16L"):
        return picture
    wide = np.asarray(picture).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
