"""What an answer to "detect" or "segment" says of one picture, in its pixels."""

from dataclasses import dataclass

import numpy as np
import torch

from backbone.detections import BIG_VISION, Detection, parse_detections
from backbone.mask_codec import MaskCodec, paste


@dataclass(frozen=True)
class Thing:
    """name: "" where the answer names nothing. box: (x0, y0, x1, y1) in pixels, not rounded. mask:
    bool [H, W] of the whole picture, or None."""

    name: str
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Findings:
    """things: in the answer's order. dropped: the pieces of it that were not well-formed, and why,
    as text for people. text: the answer itself."""

    things: tuple[Thing, ...]
    dropped: tuple[str, ...]
    text: str


def read_findings(
    text: str, image_size: tuple[int, int], codec: MaskCodec | None = None, scale: int = BIG_VISION
) -> Findings:
    """Read an answer, whatever a model has made of it; masks only with a `codec`.

    image_size: (height, width) of the picture. scale: as in `backbone.detections`.
    """
    parsed = parse_detections(text, scale)
    things = []
    for item in parsed.items:
        mask = None if codec is None else _mask(item, image_size, codec)
        things.append(Thing(item.name, item.box.pixels(image_size), mask))
    return Findings(tuple(things), parsed.dropped, text)


@torch.no_grad()
def _mask(item: Detection, image_size: tuple[int, int], codec: MaskCodec) -> np.ndarray | None:
    if item.codes is None:
        return None
    codes = torch.tensor([item.codes], device=codec.codebook.device)
    return paste(codec.decode(codes)[0].float().cpu().numpy(), item.box, image_size)
