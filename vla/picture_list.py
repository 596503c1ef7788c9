"""The pictures that a command was given: files, folders, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backbone.picture_file import STILL_FORMATS, PictureLimits, open_picture

STDIN = Path("-")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
LARGEST_FILE = 100 * 2**20  # bytes; these are the user's own files, not a stranger's


def limits(megapixels: float) -> PictureLimits:
    """For files of one's own: any aspect, and more bytes than a server takes."""
    pixels = round(megapixels * 1e6)
    return PictureLimits(LARGEST_FILE, pixels, float("inf"), STILL_FORMATS)


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Files as they are; a folder's pictures by name, those of its folders left out.

    Raises FileNotFoundError for what does not exist, ValueError for a folder without pictures.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"{path} holds no pictures ({' '.join(SUFFIXES)})")
            found += inside
        elif path == STDIN or path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"no picture at {path}")
    return found


@dataclass(frozen=True)
class Opened:
    """pixels: uint8 RGB [H, W, 3]; None where `error` says why it could not be read."""

    path: Path
    pixels: np.ndarray | None
    error: str = ""


def read_picture(path: Path, allowed: PictureLimits) -> Opened:
    """One picture; `-` is standard input. A file that is no picture is an `error`, not raised."""
    try:
        if path == STDIN:
            data = sys.stdin.buffer.read(allowed.bytes + 1)
            return Opened(path, open_picture(data, allowed, "standard input"))
        return Opened(path, open_picture(path, allowed))
    except (ValueError, OSError) as error:
        return Opened(path, None, str(error))
