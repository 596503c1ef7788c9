"""What `vla demo` says at its end: result.json, a summary and the report."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from vla.data.demonstrations import Demonstrations
from vla.evaluation import figures
from vla.evaluation.evaluate import Evaluation
from vla.evaluation.intervals import wilson
from vla.evaluation.report import Curves, Report, Result, Video
from vla.evaluation.table import success_row
from vla.pi05 import Pi05
from vla.policy import Policy

TARGETS = {"success": 0.90, "swapped_named": 0.75, "swapped_original": 0.15}
SIGNS = {"success": "≥", "untrained": "", "swapped_original": "≤", "swapped_named": "≥"}
ACTION_NAMES = ("dx", "dy", "grip")
FILMED = 2  # episodes of each evaluation that keep their frames
DRAWN = 2  # held-out episodes whose chunks and attention are drawn


@dataclass(frozen=True)
class Outcome:
    """The evaluations of a demo. `swapped` was judged by both goals."""

    trained: Evaluation
    untrained: Evaluation
    swapped: Evaluation

    def counts(self) -> dict[str, dict[str, int]]:
        """Successes and episodes of each setting: what result.json holds."""
        original = sum(bool(e.original_success) for e in self.swapped.episodes)
        trials = len(self.swapped.episodes)
        return {
            "success": _count(self.trained),
            "untrained": _count(self.untrained),
            "swapped_original": {"k": original, "n": trials},
            "swapped_named": _count(self.swapped),
        }


def summary(result: dict) -> str:
    """What result.json holds, with intervals and targets, as lines for a terminal."""
    lines = []
    for name, sign in SIGNS.items():
        k, n = result[name]["k"], result[name]["n"]
        low, high = wilson(k, n)
        target = f"   wanted {sign} {TARGETS[name]:.0%}" if name in TARGETS else ""
        lines.append(f"{name:<18}{k:>4}/{n:<4} {k / n:>4.0%}  [{low:.0%}, {high:.0%}]{target}")
    reached = result["steps_to_target"]
    steps = f"after {reached} steps" if reached is not None else "never on the curve"
    lines.append(f"{f'{TARGETS["success"]:.0%} solved':<18} {steps}")
    return "\n".join([*lines, f"{'time':<18} {_minutes(result['seconds'])}"])


def demo_report(
    folder: Path,
    outcome: Outcome,
    policy: Policy,
    held_out: Demonstrations,
    curves: tuple[Curves, ...],
    facts: dict[str, str],
    seconds: float,
) -> Report:
    """Everything that the page shows; films episodes into `folder`/videos.

    facts: about the run, for the page's head, where size, time and machine are added.
    """
    items = figures.spread(held_out, DRAWN)
    parameters = sum(p.numel() for p in policy.model.parameters())
    total, env_id = outcome.trained.table.total, outcome.trained.env_id
    kind = "π0.5" if isinstance(policy.model, Pi05) else "π0"
    return Report(
        title=f"A small {kind} on {env_id}",
        lead=f"It learned from a scripted expert's demonstrations, then solved {total.k} of "
        f"{total.n} scenes it had never seen, from two cameras and a sentence.",
        facts={
            **facts,
            "Parameters": f"{parameters / 1e6:.2f} M",
            "Wall time": _minutes(seconds),
            "Machine": f"{os.cpu_count()} CPU cores",
        },
        results=_results(outcome),
        tasks=outcome.trained.table.rows,
        videos=_videos(outcome, folder / "videos"),
        curves=curves,
        chunks=figures.chunks(policy, items),
        action_names=ACTION_NAMES,
        attention=figures.attention(policy, items),
        footer="Made by vla demo. Scenes, noise and the order of samples follow from the seed.",
    )


def _results(outcome: Outcome) -> tuple[Result, ...]:
    trained, swapped = outcome.trained.table.total, outcome.swapped.table.total
    original = [replace(e, success=bool(e.original_success)) for e in outcome.swapped.episodes]
    return (
        Result("Trained", f"{trained.n} unseen scenes", trained, TARGETS["success"]),
        Result("Untrained", "the same scenes before training", outcome.untrained.table.total),
        Result(
            "Swapped instruction, named goal",
            "it asks for another object of the scene",
            swapped,
            TARGETS["swapped_named"],
        ),
        Result(
            "Swapped instruction, original goal",
            "rare for a policy that listens",
            success_row("original", original),
            TARGETS["swapped_original"],
        ),
    )


def _videos(outcome: Outcome, folder: Path) -> tuple[Video, ...]:
    first, second = outcome.trained.episodes[:FILMED]
    shown = {
        "trained-1": (first, "Trained"),
        "trained-2": (second, "Trained, another scene"),
        "swapped": (outcome.swapped.episodes[0], "First scene, swapped instruction"),
        "untrained": (outcome.untrained.episodes[0], "First scene, before training"),
    }
    return tuple(
        figures.film(episode, folder / f"{name}.mp4", title)
        for name, (episode, title) in shown.items()
    )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _count(evaluation: Evaluation) -> dict[str, int]:
    total = evaluation.table.total
    return {"k": total.k, "n": total.n}
