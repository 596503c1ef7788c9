"""Starts for a small model that learns from nothing.

Released weights replace all of this. Training from nothing, a small PaliGemma binds places to
`<loc>` tokens several times sooner when both begin with an order that it would otherwise have to
discover: neighbouring patches, and neighbouring `<loc>` tokens, start alike.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from backbone.siglip import SigLIPConfig

LOCS = 1024
PATCH_SCALE = 0.5


def in_order(
    tensors: Iterable[tuple[str, Tensor]],
    vision: SigLIPConfig | None,
    first_loc: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The random starts of a PaliGemma, by name, with sines of the places that they stand for as
    patch positions of its encoder, `vision`, and as `<loc>` rows from `first_loc` on. None: as they
    come. generator: of what turns the rows."""
    for name, tensor in tensors:
        if name == "vision.embedding.position" and vision is not None:
            tensor = patch_places(vision)
        if name == "embedding.weight" and first_loc is not None:
            tensor[first_loc : first_loc + LOCS] = loc_rows(tensor.shape[1], generator)
        yield name, tensor


def loc_rows(width: int, generator: torch.Generator | None = None) -> Tensor:
    """Float32 [1024, width], of about unit length."""
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]  # over all of it
    codes = torch.nn.functional.pad(_sines(LOCS, width // 2), (0, width - width // 2))
    return codes @ turn * (2 / math.sqrt(width))


def patch_places(vision: SigLIPConfig) -> Tensor:
    """Positions of an image encoder's patches, float32 [patches, D]: sines of row and column."""
    grid = vision.resolution // vision.patch
    side = _sines(grid, vision.width // 2)
    rows = side[:, None].expand(-1, grid, -1)
    columns = side[None].expand(grid, -1, -1)
    return PATCH_SCALE * torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _sines(places: int, width: int) -> Tensor:
    """Sines and cosines of evenly spaced places, octaves from half a turn: [places, width]."""
    x = (torch.arange(places) + 0.5) / places
    octaves = torch.linspace(0, 5, width // 2).clamp(max=math.log2(max(places / 2, 2)))
    angle = math.pi * x[:, None] * 2**octaves
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
