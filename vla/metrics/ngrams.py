"""Runs of n words and how often they occur: what CIDEr-D and BLEU count."""

from collections import Counter
from collections.abc import Callable, Sequence

from vla.metrics.ptb import caption_words
from vla.metrics.score import check_pairs

Words = Callable[[str], list[str]]  # how a caption is split
Ngram = tuple[str, ...]


def ngrams(words: Sequence[str], longest: int = 4) -> list[Counter[Ngram]]:
    """How often each run of 1, 2, …, `longest` words occurs: one counter per length."""
    return [
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        for n in range(1, longest + 1)
    ]


def split_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], words: Words = caption_words
) -> list[tuple[list[str], list[list[str]]]]:
    """Each prediction and its references as words.

    Raises ValueError where their numbers differ, where there are none, and for an example without
    a reference.
    """
    check_pairs(predictions, references)
    for i, refs in enumerate(references):
        if not refs or isinstance(refs, str):
            raise ValueError(f"example {i}: expected a list of reference captions, got {refs!r}")
    return [
        (words(prediction), [words(r) for r in refs])
        for prediction, refs in zip(predictions, references, strict=True)
    ]
