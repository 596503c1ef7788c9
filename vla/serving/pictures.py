"""The pictures of a request: from URL to what the model takes."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backbone.picture_file import open_picture
from vla.serving.fields import short
from vla.serving.protocol import Link
from vla.serving.refusal import Refused


@dataclass(frozen=True)
class Picture:
    """prepared: as `Model.prepare` made it. size: (height, width) of the upright picture."""

    prepared: Any
    size: tuple[int, int]


def is_data(link: Link) -> bool:
    """Whether the picture stands in the URL itself."""
    return link.url[:5].lower() == "data:"


def data_bytes(link: Link) -> bytes:
    """The bytes in a data URI. Raises `Refused` for anything but base64 of an image's type."""
    head, comma, data = link.url.partition(",")
    kind = head[5:].lower()
    if not comma or not kind.startswith("image/") or not kind.endswith(";base64"):
        raise Refused(
            f"{link.path}: expected data:image/…;base64,…, got {short(head)}",
            link.path,
            "invalid_image_url",
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"{link.path}: not base64 ({error})", link.path, "invalid_base64") from error


def read_picture(data: bytes, path: str, prepare: Callable[[np.ndarray], Any]) -> Picture:
    """Opens a picture. Raises `Refused` (400) for bytes that are not one that we open."""
    try:
        image = open_picture(data, name="the picture")
    except ValueError as error:
        raise Refused(f"{path}: {error}", path, "invalid_image") from error
    return Picture(prepare(image), image.shape[:2])
