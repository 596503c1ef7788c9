"""Sizes of a PaliGemma, read off the shapes of its weights.

A config.json may leave sizes to defaults that differ between releases; shapes cannot be wrong.
Nothing here imports torch, so the released sizes are written down again; a test compares them with
the models' own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Vision:
    """Sizes of a SigLIP; `heads` is None where the file cannot tell."""

    width: int
    depth: int
    mlp: int
    heads: int | None
    patch: int
    resolution: int


@dataclass(frozen=True)
class Stack:
    """Sizes of a Gemma."""

    width: int
    depth: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Heads:
    """What stacked checkpoints tell and files of matrices do not."""

    vision: int
    language: tuple[int, int]  # key/value heads, head size
    expert: tuple[int, int] | None = None


SIGLIP_HEAD = 72  # So400m, the one size that was released: 1152 = 16 · 72
STACKS = {
    "gemma_2b": Stack(2048, 18, 16_384, 8, 1, 256),
    "gemma_300m": Stack(1024, 18, 4096, 8, 1, 256),
    "gemma2_2b": Stack(2304, 26, 9216, 8, 4, 256),
    "gemma2_9b": Stack(3584, 42, 14_336, 16, 8, 256),
    "gemma2_27b": Stack(4608, 46, 36_864, 32, 16, 128),
    "small": Stack(128, 4, 256, 4, 1, 32),
    "small expert": Stack(96, 4, 192, 4, 1, 32),
    "tiny": Stack(32, 2, 64, 2, 1, 16),
}
PALIGEMMAS = {
    "gemma_2b": "PaliGemma 3B",
    "gemma2_2b": "PaliGemma 2 3B",
    "gemma2_9b": "PaliGemma 2 10B",
    "gemma2_27b": "PaliGemma 2 28B",
}


def stack_name(stack: Stack) -> str:
    """A released Gemma's name, or width and depth where the sizes are nobody's."""
    for name, known in STACKS.items():
        if stack == known:
            return name
    return f"{stack.width} wide, {stack.depth} deep"


def vision_of(shapes: Shapes, prefix: str, heads: int | None) -> Vision:
    """Of the SigLIP whose parameters start with `prefix`.

    Without `heads`: 72 wide each where the width is 1152, else unknown. Raises KeyError, naming it,
    if a parameter that is needed is missing.
    """
    width, _, patch, _ = shapes[f"{prefix}.embedding.weight"]
    if heads is None and width % SIGLIP_HEAD == 0 and width // SIGLIP_HEAD == 16:
        heads = 16
    return Vision(
        width=width,
        depth=_depth(shapes, prefix),
        mlp=shapes[f"{prefix}.blocks.0.fc1.weight"][0],
        heads=heads,
        patch=patch,
        resolution=math.isqrt(shapes[f"{prefix}.embedding.position"][0]) * patch,
    )


def stack_of(shapes: Shapes, prefix: str, heads: tuple[int, int] | None) -> Stack:
    """Of the Gemma whose parameters start with `prefix`.

    Without `heads`: a released stack is known by its width, depth and MLP, and every other has one
    key/value head, as π0's have. Raises as `vision_of` does.
    """
    block = f"{prefix}.blocks.0"
    rows, width = shapes[f"{block}.attention.q_proj.weight"]
    key_rows = shapes[f"{block}.attention.k_proj.weight"][0]
    mlp = shapes[f"{block}.mlp.gate_proj.weight"][0]
    depth = _depth(shapes, prefix)
    if heads is None:
        known = (s for s in STACKS.values() if (s.width, s.depth, s.mlp) == (width, depth, mlp))
        heads = next(((s.kv_heads, s.head_dim) for s in known), (1, key_rows))
    kv_heads, head_dim = heads
    return Stack(width, depth, mlp, rows // head_dim, kv_heads, head_dim)


def _depth(shapes: Shapes, prefix: str) -> int:
    start = f"{prefix}.blocks."
    return 1 + max(int(k[len(start) :].split(".")[0]) for k in shapes if k.startswith(start))
