"""Relaxed accuracy: numbers read from a chart may be a little off."""

from collections.abc import Sequence

TOLERANCE = 0.05


def relaxed_match(prediction: str, answers: Sequence[str], tolerance: float = TOLERANCE) -> float:
    """1.0 where `prediction` meets one of `answers`, else 0.0 (ChartQA).

    Two numbers meet within `tolerance` of the answer, a trailing % dividing by 100 on either side;
    other texts, and an answer of 0, must be equal. Nothing is folded.
    Source: arXiv 2203.10244, section 5.1, and big_vision `chartqa.py`, whose numbers these are
    (it lower-cases both sides first: `relaxed_match_lower`). Numbers are what Python's float reads.
    """
    return float(any(_meets(prediction, a, tolerance) for a in answers))


def relaxed_match_lower(prediction: str, answers: Sequence[str]) -> float:
    """`relaxed_match` of the lower-cased texts."""
    return relaxed_match(prediction.lower(), [a.lower() for a in answers])


def _meets(prediction: str, answer: str, tolerance: float) -> bool:
    number, target = _number(prediction), _number(answer)
    if number is None or not target:
        return prediction == answer
    return abs(number - target) / abs(target) <= tolerance


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
