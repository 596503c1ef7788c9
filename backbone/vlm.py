"""A vision-language model in a folder: image and text in, text out."""

from __future__ import annotations

from pathlib import Path

import torch

from backbone.paligemma import PaliGemma
from backbone.pretrained import load_pretrained
from backbone.tokenizer import Tokenizer


class VLM:
    """A PaliGemma with its vocabulary."""

    def __init__(self, model: PaliGemma, tokenizer: Tokenizer):
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = "bfloat16",
        tokenizer: Tokenizer | str | Path | None = None,
        resolution: int | None = None,
    ) -> VLM:
        """Read a PaliGemma or PaliGemma 2 with its vocabulary; the files tell who wrote them.

        path: a folder of this package or of Hugging Face, or an .npz file of big_vision.
        device, dtype: of the weights. tokenizer: instead of the one beside the weights.
        resolution: of the images, in pixels, where another is wanted than the weights have: their
        position embeddings are resampled as big_vision does it.
        Raises FileNotFoundError if a file is missing, ValueError if the files do not belong
        together or what they hold cannot be used.
        """
        model, vocabulary = load_pretrained(
            path, device=device, dtype=dtype, tokenizer=tokenizer, resolution=resolution
        )
        return cls(model, vocabulary)
