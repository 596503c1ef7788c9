"""How a demo's policy comes to solve the task: success and action accuracy against steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.data.demonstrations import Demonstrations
from vla.evaluation import figures
from vla.evaluation.evaluate import evaluate
from vla.evaluation.report import Curves
from vla.evaluation.svg import Series
from vla.policy import Policy
from vla.training import checkpoint

ACTION_TOLERANCE = 0.25  # of an action's range [-1, 1]
ITEMS = 200  # about so many held-out observations


@dataclass(frozen=True)
class Point:
    """After `step` steps: k of n scenes solved, and the share of actions like the expert's."""

    step: int
    k: int
    n: int
    accuracy: float


def progress(
    checkpoints: Path,
    untrained: Policy,
    held_out: Demonstrations,
    env_id: str,
    scenes: Sequence[int],
    **rollouts: Any,
) -> Iterator[Point]:
    """The untrained policy, then each of `checkpoints`, rolled out in the same scenes.

    scenes: seeds that are used for nothing else. rollouts: for `evaluate`.
    """
    items = [held_out[i] for i in range(0, len(held_out), max(1, len(held_out) // ITEMS))]
    for step in (0, *checkpoint.steps(checkpoints)):
        policy = Policy.from_pretrained(checkpoints / str(step) / "policy") if step else untrained
        total = evaluate(policy, env_id, scenes, **rollouts).table.total
        accuracy = figures.chunk_accuracy(policy, items, ACTION_TOLERANCE)
        print(f"step {step}: success {total.k}/{total.n}, actions {accuracy:.0%}", flush=True)
        yield Point(step, total.k, total.n, accuracy)


def steps_to(bar: float, points: Sequence[Point]) -> int | None:
    """The first step at which the share of solved scenes is at least `bar`; None if it never is."""
    return next((p.step for p in points if p.k >= bar * p.n), None)


def drawn(points: Sequence[Point]) -> Curves:
    """Both curves, for the report."""
    steps = [p.step for p in points]
    solved, accuracy = [p.k / p.n for p in points], [p.accuracy for p in points]
    series = (
        Series("episodes solved", steps, solved, colour=1, points=True),
        Series("actions like the expert's", steps, accuracy, colour=3, dashed=True, points=True),
    )
    note = (
        f"Success in {points[0].n} scenes used for nothing else; actions of held-out "
        f"episodes within {ACTION_TOLERANCE} of the expert's in every dimension."
    )
    return Curves(series, "Accuracy", note, "share", percent=True)
