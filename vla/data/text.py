"""Images with a prompt and its answer, the way PaliGemma is trained: examples and their batches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backbone.paligemma import TextBatch
from backbone.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextExample:
    """images: uint8 RGB [N, R, R, 3]. prompt and answer: plain text; the answer may hold
    `<locDDDD>`. silent: pieces (start, end) of the answer that are not learned, which begin and end
    beside `<loc>` or `<seg>`. part: of the mixture that it comes from. where: its place there, for
    messages.
    """

    images: np.ndarray
    prompt: str
    answer: str
    silent: tuple[tuple[int, int], ...] = ()
    part: str = ""
    where: str = ""


@dataclass(frozen=True)
class TextRoom:
    """What a row of text holds: `length` tokens of `tokenizer`."""

    tokenizer: Tokenizer
    length: int

    def fits(self, prompt: str, answer: str) -> bool:
        """Whether prompt, newline, answer and EOS are not cut."""
        return text_length(prompt, answer, self.tokenizer) <= self.length


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

    All images have the same size; where some examples have fewer, the places of those that they
    lack are not valid. length: tokens per row; the longest row, rounded up to a multiple of 8, when
    not given. A row that is longer is cut on the right, as big_vision cuts it.
    """
    prefixes = [tokenizer.prefix(e.prompt) for e in examples]
    answers = [_answer(e, tokenizer) for e in examples]
    suffixes = [ids for ids, _ in answers]
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
    counted = None
    if any(e.silent for e in examples):
        counted = suffix.copy()
        for row, (head, (_, learned)) in enumerate(zip(prefixes, answers, strict=True)):
            room = max(0, length - len(head))
            counted[row, len(head) : len(head) + len(learned)] &= learned[:room]
    images, image_valid = _images(examples)
    return TextBatch(
        images=images,
        image_valid=image_valid,
        tokens=torch.from_numpy(tokens),
        token_valid=torch.from_numpy(valid),
        suffix=torch.from_numpy(suffix),
        counted=None if counted is None else torch.from_numpy(counted),
    )


def text_length(prompt: str, answer: str, tokenizer: Tokenizer) -> int:
    """Tokens of a row that is not cut: prompt, newline, answer and EOS."""
    return len(tokenizer.prefix(prompt)) + len(tokenizer.encode(answer, eos=True))


def tokens_read(batch: TextBatch, patches: int) -> int:
    """Tokens that the language model reads, padding left out; patches: of an image."""
    return int(batch.token_valid.sum() + batch.image_valid.sum() * patches)


def cut_rows(
    examples: Sequence[TextExample], batch: TextBatch, tokenizer: Tokenizer
) -> dict[str, float]:
    """How many rows of `examples` as a batch were too long and cut: "cut", all of them, and
    "cut/<part>", those of a part of a mixture, where there were some.
    """
    full = batch.token_valid[:, -1] & (batch.tokens[:, -1] != tokenizer.eos)
    parts = Counter(
        f"cut/{e.part}" for e, cut in zip(examples, full, strict=True) if e.part and cut
    )
    return {"cut": float(full.sum()), **{name: float(n) for name, n in parts.items()}}


def _answer(example: TextExample, tokenizer: Tokenizer) -> tuple[list[int], np.ndarray]:
    """The answer's ids with EOS, and which of them are learned, bool of the same length.

    Cut beside `<loc>`, a text has the same ids as in one piece, since those are ids of their own.
    """
    ids, learned, at = [], [], 0
    for start, end in (*example.silent, (len(example.answer), len(example.answer))):
        for piece, wanted in ((example.answer[at:start], True), (example.answer[start:end], False)):
            new = tokenizer.encode(piece)
            ids += new
            learned += [wanted] * len(new)
        at = end
    return [*ids, tokenizer.eos], np.array([*learned, True])


def _images(examples: Sequence[TextExample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, N, 3, R, R] and which there are, bool [B, N]."""
    most, first = max(len(e.images) for e in examples), examples[0].images
    images = np.zeros((len(examples), most, *first.shape[1:]), first.dtype)
    valid = np.zeros((len(examples), most), dtype=bool)
    for row, example in enumerate(examples):
        images[row, : len(example.images)] = example.images
        valid[row, : len(example.images)] = True
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3), torch.from_numpy(valid)
