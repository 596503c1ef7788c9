"""What `vla demo` says at its end: result.json, a summary and the report."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

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
    """The counts of result.json with their intervals and targets, as lines for a terminal."""
    lines = []
    for name, sign in SIGNS.items():
        k, n = result[name]["k"], result[name]["n"]
        low, high = wilson(k, n)
        target = f"   wanted {sign} {TARGETS[name]:.0%}" if name in TARGETS else ""
        lines.append(f"{name:<18}{k:>4}/{n:<4} {k / n:>4.0%}  [{low:.0%}, {high:.0%}]{target}")
    return "\n".join([*lines, f"{'time':<18}{_minutes(result['seconds'])}"])


def demo_report(
    plan: Plan,
    folder: Path,
    policy: Policy,
    outcome: Outcome,
    curves: tuple[Curves, ...],
    held_out: Demonstrations,
    seconds: float,
) -> Report:
    """Everything that the page shows; writes the videos into `folder`/videos."""
    items = figures.spread(held_out, SHOWN)
    parameters = sum(p.numel() for p in policy.model.parameters())
    total = outcome.trained.table.total
    return Report(
        title=f"A small π0 on {ENV}",
        lead=f"It learned from {plan.episodes} demonstrations of a scripted expert, then solved "
        f"{total.k} of {total.n} scenes it had never seen, from two cameras and a sentence.",
        facts={
            "Environment": ENV,
            "Demonstrations": f"{plan.episodes} episodes, {sum(held_out.dataset.lengths)} frames",
            "Training": f"{plan.steps} steps of {plan.batch_size}",
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
        footer=f"Made by vla demo, seed {plan.seed}. Noise, scenes and order of samples follow "
        "from the seed.",
    )


def _results(outcome: Outcome) -> tuple[Result, ...]:
    trained, swapped = outcome.trained.table.total, outcome.swapped.table.total
    original = [replace(e, success=bool(e.original_success)) for e in outcome.swapped.episodes]
    return (
        Result("Trained", f"{trained.n} unseen scenes", trained, TARGETS["success"]),
        Result("Untrained", "the same scenes before training", outcome.untrained.table.total),
        Result(
            "Swapped instruction: what it names",
            "the sentence asks for another object of the scene",
            swapped,
            TARGETS["swapped_named"],
        ),
        Result(
            "Swapped instruction: what the scene was made for",
            "should be rare, for a policy that listens",
            success_row("original", original),
            TARGETS["swapped_original"],
        ),
    )


def _videos(outcome: Outcome, folder: Path) -> tuple[Video, ...]:
    first, second = outcome.trained.episodes[:SHOWN]
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
