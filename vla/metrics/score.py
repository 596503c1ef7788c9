"""A metric's result: its value, its examples, its interval, as a table row and as JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.evaluation.intervals import wilson

RESAMPLES = 1000
ROWS_AT_ONCE = 2**22  # numbers held at once while resampling: 32 MiB


@dataclass(frozen=True)
class Score:
    """One metric over one set of examples.

    value: as the metric's reference implementation gives it, a share in [0, 1] rather than a
    percentage (CIDEr-D: [0, 10]). n: examples. per_example: each example's part, in their order;
    empty where the metric has none. interval: 95 % confidence, None where it isn't known.
    """

    name: str
    value: float
    n: int
    per_example: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None

    def row(self, width: int = 0) -> str:
        """A line for a terminal, in hundredths as papers print it: `CIDEr-D  113.4  …  5000`."""
        span = "–" if self.interval is None else "{:.1f} – {:.1f}".format(*_hundredths(self))
        return f"{self.name:<{width}}  {100 * self.value:>7.1f}  {span:>15}  {self.n:>7}"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values; `score_from_json` is the way back."""
        return asdict(self)


def mean_score(name: str, per_example: Sequence[float]) -> Score:
    """The mean of `per_example` with its interval: Wilson's where every value is 0 or 1, else the
    percentile bootstrap over examples. Raises ValueError without examples.
    """
    if not len(per_example):
        raise ValueError(f"expected at least one example to compute {name} from, got none")
    values = np.asarray(per_example, dtype=float)
    n = len(values)
    if np.isin(values, (0.0, 1.0)).all():
        interval = wilson(int(values.sum()), n)
    else:
        interval = bootstrap(values[:, None], lambda sums: sums[:, 0] / n)
    return Score(name, float(values.mean()), n, tuple(values.tolist()), interval)


def bootstrap(
    parts: np.ndarray,
    value: Callable[[np.ndarray], np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a metric that is a function of sums over examples.

    parts: [N, P], what each example adds. value: sums [R, P] → metric [R]. Examples are drawn with
    replacement, `resamples` times, from `seed`, so the interval is the same every time.
    Source: B. Efron, Annals of Statistics 7 (1979).
    """
    rng = np.random.default_rng(seed)
    n = len(parts)
    sums = []
    for start in range(0, resamples, step := max(1, ROWS_AT_ONCE // n)):
        count = min(step, resamples - start)
        times = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(count)])
        sums.append(times @ parts)
    low, high = np.percentile(value(np.concatenate(sums)), (2.5, 97.5)).tolist()
    return low, high


def score_table(scores: Sequence[Score]) -> str:
    """Scores as aligned lines under a heading, for a terminal."""
    width = max([len("metric"), *(len(s.name) for s in scores)])
    head = f"{'metric':<{width}}  {'× 100':>7}  {'95 % interval':>15}  {'n':>7}"
    return "\n".join([head, *(s.row(width) for s in scores)])


def save_scores(scores: Sequence[Score], path: Path, settings: Mapping[str, Any] = {}) -> None:
    """Write `scores` and what they were computed with (task, model, …) to a JSON file."""
    content = {"settings": dict(settings), "scores": [s.to_json() for s in scores]}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def load_scores(path: Path) -> tuple[Score, ...]:
    """The scores that `save_scores` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return tuple(score_from_json(fields) for fields in content["scores"])


def score_from_json(fields: Mapping[str, Any]) -> Score:
    """The score that `Score.to_json` describes."""
    interval = None if fields["interval"] is None else tuple(fields["interval"])
    return Score(**{**fields, "per_example": tuple(fields["per_example"]), "interval": interval})


def check_pairs(predictions: Sequence[object], references: Sequence[object]) -> None:
    """Raise ValueError unless there are as many predictions as references, and some."""
    if len(predictions) != len(references):
        raise ValueError(
            f"expected one prediction per example, got {len(predictions)} predictions for "
            f"{len(references)} examples"
        )
    if not predictions:
        raise ValueError("expected at least one example to score, got none")


def _hundredths(score: Score) -> list[float]:
    assert score.interval is not None
    return [100 * end for end in score.interval]
