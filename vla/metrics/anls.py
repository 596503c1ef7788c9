"""ANLS: answers that were read from a picture and may have a few letters wrong."""

from collections.abc import Sequence

THRESHOLD = 0.5


def anls(prediction: str, answers: Sequence[str], threshold: float = THRESHOLD) -> float:
    """Average normalised Levenshtein similarity of one prediction, in [0, 1].

    The best, over `answers`, of 1 − distance / length of the longer text, where that quotient is
    below `threshold`, and 0 otherwise. Nothing is folded.
    Source: arXiv 1905.13648, equation 1, and big_vision `vqa.py`. The evaluation server of
    DocVQA keeps a quotient of exactly 0.5, which this, like the paper, doesn't.
    """
    return max((_similarity(prediction, a, threshold) for a in answers), default=0.0)


def anls_lower(prediction: str, answers: Sequence[str]) -> float:
    """`anls` of the lower-cased texts (DocVQA, InfoVQA, ST-VQA)."""
    return anls(prediction.lower(), [a.lower() for a in answers])


def edit_distance(a: str, b: str) -> int:
    """How many letters to insert, delete or replace to turn `a` into `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            replaced = corner + (letter != other)
            corner = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def _similarity(prediction: str, answer: str, threshold: float) -> float:
    if not answer:
        return float(prediction == "")
    quotient = edit_distance(answer, prediction) / max(len(answer), len(prediction))
    return 1 - quotient if quotient < threshold else 0.0
