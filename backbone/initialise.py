"""Starts for a small model that learns from nothing.

Released weights replace all of this. Training from nothing, a small PaliGemma binds places to
`<loc>` tokens several times sooner when both begin with an order that it would otherwise have to
discover: neighbouring patches, and neighbouring `<loc>` tokens, start alike.
"""

import math

import torch
from torch import Tensor

from backbone.paligemma import PaliGemma
from backbone.siglip import SigLIP

PATCH_SCALE = 0.5


def order_places(model: PaliGemma, first_loc: int) -> None:
    """Start `model`'s patch positions and `<loc>` rows as sines of the place that they stand for.

    first_loc: id of `<loc0000>`. Changes parameters in place; draws from the global generator.
    """
    if isinstance(model.vision, SigLIP):
        order_patches(model.vision)
    order_locs(model, first_loc)


def order_locs(model: PaliGemma, first_loc: int, locs: int = 1024) -> None:
    """The `<loc>` rows alone."""
    table = model.embedding.weight
    with torch.no_grad():
        width = table.shape[1]
        turn = torch.linalg.qr(torch.randn(width, width))[0]  # spread over all of the width
        codes = torch.nn.functional.pad(_sines(locs, width // 2), (0, width - width // 2))
        table[first_loc : first_loc + locs] = codes @ turn * (2 / math.sqrt(width))


def order_patches(vision: SigLIP) -> None:
    """The same for the patch positions of an image encoder alone."""
    grid = vision.config.resolution // vision.config.patch
    side = _sines(grid, vision.config.width // 2)
    rows = side[:, None].expand(-1, grid, -1)
    columns = side[None].expand(grid, -1, -1)
    position = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    with torch.no_grad():
        vision.embedding.position.copy_(PATCH_SCALE * position)


def _sines(places: int, width: int) -> Tensor:
    """Sines and cosines of evenly spaced places, octaves from half a turn: [places, width]."""
    x = (torch.arange(places) + 0.5) / places
    octaves = torch.linspace(0, 5, width // 2).clamp(max=math.log2(max(places / 2, 2)))
    angle = math.pi * x[:, None] * 2**octaves
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
