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
    messages. also: further prompts about the same images, with their answers.
    """

    images: np.ndarray
    prompt: str
    answer: str
    silent: tuple[tuple[int, int], ...] = ()
    part: str = ""
    where: str = ""
    also: tuple[tuple[str, str], ...] = ()


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
    """Lay examples out as [BOS, prompt, "\\n", answer, EOS, padding …]; where an example has
    further texts, these follow its first before the padding, each in the same way.

    All images have the same size; where some examples have fewer, the places of those that they
    lack are not valid. length: tokens per row; the longest row, rounded up to a multiple of 8, when
    not given. A row that is longer is cut on the right, as big_vision cuts it.
    """
    rows = [_row(e, tokenizer) for e in examples]
    longest = max(row.shape[1] for row in rows)
    width = -(-longest // 8) * 8 if length is None else length
    laid = np.zeros((5, len(examples), width), dtype=np.int64)
    laid[0] = tokenizer.pad
    for i, row in enumerate(rows):
        kept = row[:, :width]
        laid[:, i, : kept.shape[1]] = kept
    tokens, valid, suffix, counted, text = torch.from_numpy(laid)
    images, image_valid = _images(examples)
    return TextBatch(
        images=images,
        image_valid=image_valid,
        tokens=tokens,
        token_valid=valid.bool(),
        suffix=suffix.bool(),
        counted=counted.bool() if any(e.silent for e in examples) else None,
        text=text if any(e.also for e in examples) else None,
    )


def _row(example: TextExample, tokenizer: Tokenizer) -> np.ndarray:
    """Of all tokens of an example: ids, ones, whether they are an answer's, whether they are
    learned, and the number of their text, from 1; int64 [5, T]."""
    columns = []
    for number, (prompt, answer) in enumerate(((example.prompt, example.answer), *example.also), 1):
        head = tokenizer.prefix(prompt)
        tail, learned = _answer(answer, example.silent if number == 1 else (), tokenizer)
        columns += [(id, 1, 0, 0, number) for id in head]
        columns += [(id, 1, 1, int(x), number) for id, x in zip(tail, learned, strict=True)]
    return np.array(columns, dtype=np.int64).T


def text_length(prompt: str, answer: str, tokenizer: Tokenizer) -> int:
    """Tokens of a text that is not cut: prompt, newline, answer and EOS."""
    return len(tokenizer.prefix(prompt)) + len(tokenizer.encode(answer, eos=True))


def row_length(example: TextExample, tokenizer: Tokenizer) -> int:
    """Tokens of all texts of an example."""
    texts = ((example.prompt, example.answer), *example.also)
    return sum(text_length(prompt, answer, tokenizer) for prompt, answer in texts)


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


def _answer(
    answer: str, silent: Sequence[tuple[int, int]], tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    """The answer's ids with EOS, and which of them are learned, of the same length.

    Cut beside `<loc>`, a text has the same ids as in one piece, since those are ids of their own.
    """
    ids, learned, at = [], [], 0
    for start, end in (*silent, (len(answer), len(answer))):
        for piece, wanted in ((answer[at:start], True), (answer[start:end], False)):
            new = tokenizer.encode(piece)
            ids += new
            learned += [wanted] * len(new)
        at = end
    return [*ids, tokenizer.eos], [*learned, True]


def _images(examples: Sequence[TextExample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, N, 3, R, R] and which there are, bool [B, N]."""
    most, first = max(len(e.images) for e in examples), examples[0].images
    images = np.zeros((len(examples), most, *first.shape[1:]), first.dtype)
    valid = np.zeros((len(examples), most), dtype=bool)
    for row, example in enumerate(examples):
        images[row, : len(example.images)] = example.images
        valid[row, : len(example.images)] = True
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3), torch.from_numpy(valid)
