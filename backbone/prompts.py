"""Pictures and words as a batch that can be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from backbone.image import prepare
from backbone.numerics import Resize
from backbone.paligemma import TextBatch
from backbone.tokenizer import Tokenizer

Picture = np.ndarray | Image.Image  # uint8 RGB [H, W, 3], or a PIL image of any mode


@dataclass(frozen=True)
class Prompt:
    """images: none, one, or several, such as the frames of a video. text: without the newline that
    ends it. start: how the answer begins."""

    images: tuple[Picture, ...]
    text: str
    start: str = ""


def batch_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, size: int, resize: Resize
) -> TextBatch:
    """Lay prompts side by side, padded on the right; absent pictures are not valid.

    size, resize: of the model's square, as in `prepare`. `suffix` marks the tokens of `start`.
    Raises ValueError as `prepare` does.
    """
    prefixes = [tokenizer.prefix(p.text) for p in prompts]
    starts = [tokenizer.encode(p.start) for p in prompts]
    rows = [prefix + start for prefix, start in zip(prefixes, starts, strict=True)]
    tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.pad)
    suffix = torch.zeros(tokens.shape, dtype=torch.bool)
    valid = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        valid[i, : len(row)] = True
        suffix[i, len(prefixes[i]) : len(row)] = True
    images, image_valid = _images(prompts, size, resize)
    return TextBatch(images, image_valid, tokens, valid, suffix)


def _images(
    prompts: Sequence[Prompt], size: int, resize: Resize
) -> tuple[torch.Tensor, torch.Tensor]:
    most = max(1, *(len(p.images) for p in prompts))
    ready = [[prepare(image, size, resize) for image in p.images] for p in prompts]
    dtype = next((image.dtype for row in ready for image in row), np.dtype(np.uint8))
    images = np.zeros((len(prompts), most, size, size, 3), dtype)
    valid = torch.zeros(len(prompts), most, dtype=torch.bool)
    for i, row in enumerate(ready):
        for n, image in enumerate(row):
            images[i, n] = image
            valid[i, n] = True
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3), valid
