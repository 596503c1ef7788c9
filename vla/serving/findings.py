"""Boxes and masks of an answer, as JSON."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from backbone.detections import Detection, parse_detections

Masks = Callable[[Sequence[Detection]], list[np.ndarray | None]]


def findings(text: str, sizes: Sequence[tuple[int, int]], masks: Masks) -> dict[str, Any]:
    """What an answer's text names in the picture.

    sizes: (height, width) in pixels of the pictures asked about.

    Returns
        image_sizes: [width, height] of each picture, as it was looked at (upright).
        detections: name; box, [x0, y0, x1, y1] as shares of the picture's sides; box_pixels, the
            same in pixels, null unless there was one picture; mask, a PNG as data URI, 64 × 64
            grey, to be stretched over the box (above 127 is inside), or null; codes, the mask's 16
            codes, or null.
        dropped: what looked like a detection but was not well-formed, in words.
    """
    parsed = parse_detections(text) if "<loc" in text else None
    items = parsed.items if parsed else ()
    return {
        "image_sizes": [[width, height] for height, width in sizes],
        "detections": [
            _detection(item, sizes, mask) for item, mask in zip(items, masks(items), strict=True)
        ],
        "dropped": list(parsed.dropped) if parsed else [],
    }


def _detection(
    item: Detection, sizes: Sequence[tuple[int, int]], mask: np.ndarray | None
) -> dict[str, Any]:
    box = item.box
    pixels = [round(v, 2) for v in box.pixels(sizes[0])] if len(sizes) == 1 else None
    return {
        "name": item.name,
        "box": [round(v, 6) for v in (box.x0, box.y0, box.x1, box.y1)],
        "box_pixels": pixels,
        "codes": None if item.codes is None else list(item.codes),
        "mask": None if mask is None else data_uri(mask),
    }


def data_uri(pixels: np.ndarray) -> str:
    """uint8 [H, W] grey, or RGB [H, W, 3], as a PNG in a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
