"""Boxes, names and masks drawn on a picture."""

import numpy as np
from PIL import Image, ImageDraw

from backbone.findings import Findings

# Distinct on photographs, and for most colour-blind people (Okabe and Ito, "Color Universal
# Design", 2008; without black).
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
VEIL = 0.45  # share of a mask's colour


def draw_findings(picture: np.ndarray, findings: Findings) -> Image.Image:
    """A copy of `picture`, uint8 RGB [H, W, 3], with every thing's mask, box and name.

    Things of one name have one colour. Boxes may leave the picture.
    """
    names = list(dict.fromkeys(thing.name for thing in findings.things))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    veiled = picture.astype(np.float32)
    for thing in findings.things:
        if thing.mask is not None:
            colour = np.array(colours[thing.name], np.float32)
            veiled[thing.mask] = (1 - VEIL) * veiled[thing.mask] + VEIL * colour
    drawn = Image.fromarray(veiled.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(max(drawn.size) / 300))
    for thing in findings.things:
        colour = colours[thing.name]
        pen.rectangle(thing.box, outline=colour, width=width)
        if thing.name:
            _label(pen, thing.name, thing.box, colour)
    return drawn


def _label(
    pen: ImageDraw.ImageDraw,
    name: str,
    box: tuple[float, float, float, float],
    colour: tuple[int, int, int],
) -> None:
    """The name on a patch of its colour, inside the box's upper left corner."""
    corner = (max(box[0], 0), max(box[1], 0))
    shown = name.encode("latin-1", "replace").decode("latin-1")  # what Pillow's own font has
    pen.rectangle(pen.textbbox(corner, shown), fill=colour)
    pen.text(corner, shown, fill=(0, 0, 0))
