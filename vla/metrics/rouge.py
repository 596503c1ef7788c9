"""ROUGE-L: the longest common subsequence of a caption and its references."""

from collections.abc import Sequence

from vla.metrics.ngrams import Words, split_captions
from vla.metrics.ptb import caption_words
from vla.metrics.score import Score, mean_score

BETA = 1.2


def rouge_l(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    words: Words = caption_words,
) -> Score:
    """Mean ROUGE-L in [0, 1]: per example the F-measure (β = 1.2) of the best precision and the
    best recall over its references, which may come from two of them.

    Source: C.-Y. Lin, ACL 2004, and pycocoevalcap 1.2 `rouge.py`, whose numbers these are: a
    caption without words counts as one empty word there, and so here.
    """
    pairs = split_captions(predictions, references, words)
    return mean_score(
        "ROUGE-L", [_rouge_l(p or [""], [r or [""] for r in refs]) for p, refs in pairs]
    )


def _rouge_l(prediction: list[str], refs: list[list[str]]) -> float:
    common = [_common(prediction, ref) for ref in refs]
    precision = max(common) / len(prediction)
    recall = max(c / len(ref) for c, ref in zip(common, refs, strict=True))
    if precision == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        corner = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = corner + 1 if word == other else max(above, row[j - 1])
            corner = above
    return row[-1]
