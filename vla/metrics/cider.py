"""CIDEr-D: how much a caption shares with what people wrote, rare words counting more."""

from collections import Counter
from collections.abc import Sequence
from math import exp, log, sqrt

from vla.metrics.ngrams import Ngram, Words, ngrams, split_captions
from vla.metrics.ptb import caption_words
from vla.metrics.score import Score, mean_score

LONGEST, SIGMA = 4, 6.0

Vector = tuple[dict[Ngram, float], float]  # tf-idf weights of the runs of one length, their norm


def cider_d(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    words: Words = caption_words,
) -> Score:
    """CIDEr-D over a corpus, in [0, 10]; papers print it times 100.

    references: several captions per example. Document frequencies come from `references`, one
    document per example, so the value depends on the set (a single example always gives 0), and the
    interval is that of the examples at these frequencies. words: how captions are split.
    Source: arXiv 1411.5726, section 6 (clipping, σ = 6, ×10), and pycocoevalcap 1.2
    `cider_scorer.py`, whose numbers these are: there the length penalty compares the numbers of
    word *pairs*, which differs from words for captions of no word beside captions of one.
    Raises ValueError as `split_captions` does.
    """
    pairs = split_captions(predictions, references, words)
    counted = [(ngrams(p, LONGEST), [ngrams(r, LONGEST) for r in refs]) for p, refs in pairs]
    idf = _Idf([refs for _, refs in counted])
    return mean_score("CIDEr-D", [_cider(p, refs, idf) for p, refs in counted])


class _Idf:
    """log(examples / examples in whose references a run of words occurs)."""

    def __init__(self, documents: Sequence[list[list[Counter[Ngram]]]]):
        self.log_count = log(len(documents))
        self.frequency: Counter[Ngram] = Counter()
        for refs in documents:
            self.frequency.update({gram for ref in refs for counts in ref for gram in counts})

    def vectors(self, counts: list[Counter[Ngram]]) -> list[Vector]:
        """Per length, the counts weighted by rarity; unseen runs weigh as if seen once."""
        weighted = [
            {gram: k * (self.log_count - log(self.frequency[gram] or 1)) for gram, k in c.items()}
            for c in counts
        ]
        return [(w, sqrt(sum(v * v for v in w.values()))) for w in weighted]


def _cider(prediction: list[Counter[Ngram]], refs: list[list[Counter[Ngram]]], idf: _Idf) -> float:
    own, total = idf.vectors(prediction), 0.0
    for ref in refs:
        cosines = [_cosine(p, r) for p, r in zip(own, idf.vectors(ref), strict=True)]
        gap = prediction[1].total() - ref[1].total()
        total += sum(cosines) / LONGEST * exp(-(gap**2) / (2 * SIGMA**2))
    return 10 * total / len(refs)


def _cosine(prediction: Vector, ref: Vector) -> float:
    """Cosine similarity, where a weight counts at most as much as the reference's own."""
    (own, own_norm), (other, other_norm) = prediction, ref
    if own_norm == 0 or other_norm == 0:
        return 0.0
    shared = own.keys() & other.keys()
    return sum(min(own[g], other[g]) * other[g] for g in sorted(shared)) / (own_norm * other_norm)
