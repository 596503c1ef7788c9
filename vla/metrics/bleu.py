"""BLEU: shared runs of words over a whole corpus, with a penalty for brevity."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vla.metrics.ngrams import Words, ngrams, split_captions
from vla.metrics.ptb import caption_words
from vla.metrics.score import Score, bootstrap

SMALL, TINY = 1e-9, 1e-15  # the reference's, which keep a caption without words from dividing by 0


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    longest: int = 4,
    words: Words = caption_words,
) -> Score:
    """Corpus BLEU-`longest` in [0, 1]: counts are summed over examples before they are divided.

    The reference length of an example is that of its closest reference, the shorter of two equally
    close ones. per_example: the same formula on each example alone; the value isn't their mean.
    Source: Papineni et al., ACL 2002, and pycocoevalcap 1.2 `bleu_scorer.py` (option "closest"),
    whose numbers these are. Raises ValueError as `split_captions` does.
    """
    pairs = split_captions(predictions, references, words)
    parts = np.array([_parts(p, refs, longest) for p, refs in pairs], dtype=float)
    value = float(_bleu(parts.sum(0, keepdims=True))[0])
    interval = bootstrap(parts, _bleu)
    return Score(f"BLEU-{longest}", value, len(parts), tuple(_bleu(parts).tolist()), interval)


def _parts(prediction: list[str], refs: list[list[str]], longest: int) -> list[int]:
    """What an example adds: its length, the closest reference's, then by run length the runs found
    in some reference and all runs.
    """
    limits = [Counter() for _ in range(longest)]
    for ref in refs:
        for limit, counts in zip(limits, ngrams(ref, longest), strict=True):
            limit |= counts
    found = [(c & m).total() for c, m in zip(ngrams(prediction, longest), limits, strict=True)]
    length = len(prediction)
    guessed = [max(0, length - n) for n in range(longest)]
    closest = min((abs(len(r) - length), len(r)) for r in refs)[1]
    return [length, closest, *found, *guessed]


def _bleu(sums: np.ndarray) -> np.ndarray:
    """[R, 2 + 2 · longest] sums of `_parts` → BLEU [R]."""
    longest = (sums.shape[1] - 2) // 2
    precisions = (sums[:, 2 : 2 + longest] + TINY) / (sums[:, 2 + longest :] + SMALL)
    mean = precisions.prod(1) ** (1 / longest)
    ratio = (sums[:, 0] + TINY) / (sums[:, 1] + SMALL)
    return mean * np.exp(np.minimum(0.0, 1 - 1 / ratio))
