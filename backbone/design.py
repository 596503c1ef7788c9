"""How a PaliGemma is put together, where its paper tried other ways too (arXiv 2407.07726)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Design:
    """The defaults are PaliGemma's own; a model's config holds one of these.

    causal: which tokens see only those before them, in blocks of their own. "answer": the rest
    sees all of itself. "text": the prompt too. "all": patches too, in the order of their rows.
    connector: width of a hidden layer between image encoder and language model, GELU in between;
    None: one linear layer. The paper's width was not published.
    windows: an image of `windows`² parts, each encoded by itself; the encoder's resolution is a
    part's.
    detail: images are made this small first (pixels of a side) and large again, so that the same
    number of tokens tells less; None: they are left alone.
    """

    causal: Literal["answer", "text", "all"] = "answer"
    connector: int | None = None
    windows: int = 1
    detail: int | None = None

    def __post_init__(self):
        for name in ("connector", "windows", "detail"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"design.{name} is {value}; it must be 1 or more")


PALIGEMMA = Design()
