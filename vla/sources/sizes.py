"""Sizes of a PaliGemma, π0 or π0.5, read off the shapes of its weights.

The config.json of openpi and LeRobot names variants (`gemma_2b`), perhaps the wrong ones; shapes
cannot be wrong. Nothing here imports torch, so the variants are written down again; a test compares
them with the models' own.
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
class Sizes:
    """Of a whole model; `expert` and what follows is None for a PaliGemma alone."""

    vision: Vision
    language: Stack
    vocab: int
    expert: Stack | None = None
    adaptive: bool = False
    state_dim: int | None = None
    action_dim: int | None = None


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


def sizes_of(shapes: Shapes, heads: Heads | None = None) -> Sizes:
    """Sizes of a model from the shapes of its parameters under our names.

    Without `heads`: 72 per vision head where the width is 1152; a released Gemma 2 is known by its
    width, and every other Gemma has one key/value head, as π0's have.
    Raises KeyError, naming it, if a parameter that is needed is missing.
    """
    projection = shapes["backbone.projector.weight"]
    language = _stack("backbone.language", shapes, heads.language if heads else None)
    vision = _vision(shapes, heads.vision if heads else None)
    assert projection == (language.width, vision.width), "the projector joins other sizes"
    vocab = shapes["backbone.embedding.weight"][0]
    if "expert.action_in_proj.weight" not in shapes:
        return Sizes(vision, language, vocab)
    state = shapes.get("expert.state_proj.weight")
    return Sizes(
        vision,
        language,
        vocab,
        expert=_stack("expert.gemma", shapes, heads.expert if heads else None),
        adaptive="expert.gemma.norm.modulation.weight" in shapes,
        state_dim=state[1] if state else None,
        action_dim=shapes["expert.action_in_proj.weight"][1],
    )


def variant(sizes: Sizes) -> str:
    """A name that people know: "π0 (gemma_2b + gemma_300m)", "PaliGemma 2 3B 448"; where the sizes
    are nobody's, widths and depths."""
    language = _name(sizes.language)
    if sizes.expert is None:
        title = PALIGEMMAS.get(language, f"PaliGemma ({language})")
        return f"{title} {sizes.vision.resolution}"
    model = "π0.5" if sizes.adaptive else "π0"
    return f"{model} ({language} + {_name(sizes.expert)})"


def openpi_name(stack: Stack | None, released: str) -> str:
    """openpi's and LeRobot's variant of this stack; for sizes of one's own that of the released
    model, which is what they write too."""
    return next((n for n in ("gemma_2b", "gemma_300m") if STACKS[n] == stack), released)


def _name(stack: Stack) -> str:
    for name, known in STACKS.items():
        if stack == known:
            return name
    return f"{stack.width} wide, {stack.depth} deep"


def _vision(shapes: Shapes, heads: int | None) -> Vision:
    prefix = "backbone.vision"
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


def _stack(prefix: str, shapes: Shapes, heads: tuple[int, int] | None) -> Stack:
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
