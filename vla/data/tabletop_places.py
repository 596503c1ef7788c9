"""What lies where in random tabletop scenes: the boxes of things, and which things they are.

What a small image encoder learns to see from before a language model reads it, as PaliGemma's
SigLIP has learned from image-text pairs before its stage 1 (arXiv 2407.07726, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.tabletop.render import drawing_order, render, view
from envs.tabletop.scene import COLOURS, EASY, PLATE, SHAPES, STANDARD, sample_scene
from envs.tabletop.truth import boxes

NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in (*SHAPES, PLATE))


@dataclass(frozen=True)
class Places:
    """Pictures and the things in them.

    images: uint8 [B, 3, R, R]. row, patch: int64 [K], the picture that a thing is in and the patch
    that tells of it, in rows; see `telling`. name: int64 [K], index into `NAMES`. box: float32
    [K, 4], what the picture has of it, (y0, x0, y1, x1) in [0, 1].
    """

    images: Tensor
    row: Tensor
    patch: Tensor
    name: Tensor
    box: Tensor

    def to(self, device: torch.device | str) -> Places:
        return Places(**{k: v.to(device, non_blocking=True) for k, v in vars(self).items()})


@dataclass(frozen=True)
class TabletopPlaces:
    """A stream of scenes of both levels; the i-th is a pure function of (seed, i).

    grid: patches a side. standard: share of scenes of the more crowded level.
    """

    image_size: int
    grid: int
    cameras: tuple[str, ...] = ("top", "wrist")
    seed: int = 0
    standard: float = 0.5

    def batch(self, indices: Sequence[int]) -> Places:
        """Pictures of these scenes by all cameras. Where things are stacked, the upper counts."""
        images, found = [], []
        for i in indices:
            rng = np.random.default_rng((self.seed, i))
            scene = sample_scene(rng, STANDARD if rng.random() < self.standard else EASY)
            scene = scene.with_random_gripper(rng)
            for camera in self.cameras:
                left, top, span = view(scene, camera)
                whole = boxes(scene, camera)
                spots = {}
                for k in drawing_order(scene):
                    x, y = scene.position[k]
                    x, y = (x - left) / span, (y - top) / span
                    if 0 <= x < 1 and 0 <= y < 1:
                        spots[round(y, 3), round(x, 3)] = scene.items[k].name
                for patch, name in zip(telling(spots, self.grid), spots.values(), strict=True):
                    found.append((len(images), patch, NAMES.index(name), whole[name]))
                images.append(render(scene, camera, self.image_size))
        row, patch, name, box = map(np.array, zip(*found, strict=True))
        return Places(
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            row=torch.from_numpy(row),
            patch=torch.from_numpy(patch),
            name=torch.from_numpy(name),
            box=torch.from_numpy(box).float(),
        )


def telling(centres: Iterable[tuple[float, float]], grid: int) -> list[int]:
    """The patch of `grid` × `grid` that tells of each thing of a picture, centres (y, x) in [0, 1).

    The one its centre is in; where several are, the thing nearest its middle keeps it, and the
    others, nearest first, are told by the free patch nearest to them: no patch tells of two.
    Raises ValueError for more things than patches.
    """
    at = np.array(list(centres)).reshape(-1, 1, 2)
    if len(at) > grid**2:
        raise ValueError(
            f"{grid} × {grid} patches can't tell of {len(at)} things; make them smaller"
        )
    middles = (np.indices((grid, grid)).reshape(2, -1).T + 0.5) / grid
    distance = np.linalg.norm(at - middles, axis=-1)  # [things, patches]
    told: dict[int, int] = {}  # patch: thing
    crowded = [
        thing
        for thing in distance.min(1).argsort(kind="stable").tolist()
        if told.setdefault(int(distance[thing].argmin()), thing) != thing
    ]
    for thing in crowded:
        distance[thing, list(told)] = np.inf
        told[int(distance[thing].argmin())] = thing
    return sorted(told, key=told.__getitem__)
