"""Images with a prompt and its answer, the way PaliGemma is trained: examples and their batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backbone.paligemma import TextBatch
from backbone.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextExample:
    """images: uint8 RGB [N, R, R, 3]. prompt and answer: plain text; the answer may hold
    `<locDDDD>`.
    """

    images: np.ndarray
    prompt: str
    answer: str


_TASK = re.compile(r"(caption|cap|describe|answer|question) \w+ ?|(ocr|detect|segment)\b ?")


def without_task(prompt: str) -> str:
    """`prompt` without the words that name PaliGemma's task: "answer en how many?" → "how many?".

    One of the paper's ablations; what has no such words is left alone.
    """
    return _TASK.sub("", prompt, count=1) if _TASK.match(prompt) else prompt


def collate_text(
    examples: Sequence[TextExample], tokenizer: Tokenizer, length: int | None = None
) -> TextBatch:
    """Lay examples out as [BOS, prompt, "\\n", answer, EOS, padding …].

    All examples need the same number of images of the same size. length: tokens per row; the
    longest row, rounded up to a multiple of 8, when not given. A row that is longer is cut on the
    right, as big_vision cuts it.
    """
    prefixes = [tokenizer.prefix(e.prompt) for e in examples]
    suffixes = [tokenizer.encode(e.answer, eos=True) for e in examples]
    if length is None:
        longest = max(len(p) + len(s) for p, s in zip(prefixes, suffixes, strict=True))
        length = -(-longest // 8) * 8
    tokens = np.full((len(examples), length), tokenizer.pad, dtype=np.int64)
    valid = np.zeros((len(examples), length), dtype=bool)
    suffix = np.zeros((len(examples), length), dtype=bool)
    for row, (head, tail) in enumerate(zip(prefixes, suffixes, strict=True)):
        ids = (head + tail)[:length]
        tokens[row, : len(ids)] = ids
        valid[row, : len(ids)] = True
        suffix[row, len(head) : len(ids)] = True
    images = torch.from_numpy(np.stack([e.images for e in examples])).permute(0, 1, 4, 2, 3)
    return TextBatch(
        images=images,
        image_valid=torch.ones(images.shape[:2], dtype=torch.bool),
        tokens=torch.from_numpy(tokens),
        token_valid=torch.from_numpy(valid),
        suffix=torch.from_numpy(suffix),
    )
