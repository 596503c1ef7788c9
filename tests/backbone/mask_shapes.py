"""Simple shapes as 64 × 64 masks."""

import numpy as np
import torch


def shape(kind, cx, cy, radius, angle):
    y, x = (np.mgrid[:64, :64] + 0.5) / 64
    dx, dy = x - cx, y - cy
    distance = np.hypot(dx, dy)
    if kind == "circle":
        return distance < radius
    if kind == "ring":
        return (distance < radius) & (distance > 0.55 * radius)
    sides = {"square": 4, "triangle": 3}[kind]
    turns = angle + 2 * np.pi * np.arange(sides)[:, None, None] / sides
    return (np.cos(turns) * dx + np.sin(turns) * dy < radius * np.cos(np.pi / sides)).all(0)


def shapes(count, seed):
    """Circles, squares, triangles and rings in turn, of any angle and a little off the middle."""
    rng = np.random.default_rng(seed)
    kinds = ("circle", "square", "triangle", "ring")
    drawn = []
    for i in range(count):
        cx, cy = rng.uniform(0.42, 0.58, 2)
        drawn.append(shape(kinds[i % 4], cx, cy, rng.uniform(0.3, 0.5), rng.uniform(0, 7)))
    return torch.from_numpy(np.stack(drawn))
