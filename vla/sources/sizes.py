"""Sizes of a π0 or π0.5, or of a PaliGemma alone, read off the shapes of its weights.

The config.json of openpi and LeRobot names variants (`gemma_2b`), perhaps the wrong ones; shapes
cannot be wrong. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from backbone.sources.sizes import (
    PALIGEMMAS,
    STACKS,
    Heads,
    Shapes,
    Stack,
    Vision,
    stack_name,
    stack_of,
    vision_of,
)


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


def sizes_of(shapes: Shapes, heads: Heads | None = None) -> Sizes:
    """Sizes of a model from the shapes of its parameters under our names.

    Without `heads`: 72 per vision head where the width is 1152; a released Gemma 2 is known by its
    width, and every other Gemma has one key/value head, as π0's have.
    Raises KeyError, naming it, if a parameter that is needed is missing.
    """
    projection = shapes["backbone.projector.weight"]
    language = stack_of(shapes, "backbone.language", heads.language if heads else None)
    vision = vision_of(shapes, "backbone.vision", heads.vision if heads else None)
    assert projection == (language.width, vision.width), "the projector joins other sizes"
    vocab = shapes["backbone.embedding.weight"][0]
    if "expert.action_in_proj.weight" not in shapes:
        return Sizes(vision, language, vocab)
    state = shapes.get("expert.state_proj.weight")
    return Sizes(
        vision,
        language,
        vocab,
        expert=stack_of(shapes, "expert.gemma", heads.expert if heads else None),
        adaptive="expert.gemma.norm.modulation.weight" in shapes,
        state_dim=state[1] if state else None,
        action_dim=shapes["expert.action_in_proj.weight"][1],
    )


def variant(sizes: Sizes) -> str:
    """A name that people know: "π0 (gemma_2b + gemma_300m)", "PaliGemma 2 3B 448"; where the sizes
    are nobody's, widths and depths."""
    language = stack_name(sizes.language)
    if sizes.expert is None:
        title = PALIGEMMAS.get(language, f"PaliGemma ({language})")
        return f"{title} {sizes.vision.resolution}"
    model = "π0.5" if sizes.adaptive else "π0"
    return f"{model} ({language} + {stack_name(sizes.expert)})"


def openpi_name(stack: Stack | None, released: str) -> str:
    """openpi's and LeRobot's variant of this stack; for sizes of one's own that of the released
    model, which is what they write too."""
    return next((n for n in ("gemma_2b", "gemma_300m") if STACKS[n] == stack), released)
