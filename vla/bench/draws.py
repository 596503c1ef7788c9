"""Draws of noise and time per reading of the prefix: what they give in equal time.

A reading of pictures and prompt costs more than a pass of the action expert, and several draws
share it (`TrainConfig.draws`). More draws make a step dearer and its gradient less noisy; which of
the two counts is seen in the loss after equal time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vla.config import TrainConfig
from vla.training.job import Job, Microbatch
from vla.training.optimiser import Optimisers, freeze, make_optimiser, set_learning_rate
from vla.training.update import update, validation_loss

__all__ = ["DrawsBench", "Point", "bench_draws", "plot"]


@dataclass(frozen=True)
class Point:
    """After `seconds` of training and `steps`: the loss on held-out episodes."""

    seconds: float
    steps: int
    loss: float


@dataclass(frozen=True)
class DrawsBench:
    """curves: by number of draws. clock: "CPU" where seconds are those that all threads of the
    process computed, "wall" on a card."""

    curves: dict[int, tuple[Point, ...]]
    clock: str
    batch: int
    threads: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [("draws", "steps", "s", "s a step", "held-out loss")]
        for draws, points in self.curves.items():
            last = points[-1]
            step = last.seconds / max(last.steps, 1)
            rows.append(
                (
                    str(draws),
                    str(last.steps),
                    f"{last.seconds:.0f}",
                    f"{step:.3f}",
                    f"{last.loss:.4f}",
                )
            )
        head = f"batch {self.batch}, {self.clock} time, {self.threads} threads"
        return "\n".join([head, *("".join(f"{cell:>14}" for cell in row) for row in rows)])


def bench_draws(
    config: TrainConfig,
    draws: Sequence[int] = (1, 4, 8),
    *,
    seconds: float = 300.0,
    points: int = 6,
) -> DrawsBench:
    """Train `config` with each number of draws for `seconds`, in turns of a `points`-th of it.

    All start from the same weights and see the same samples. The rate stays at its peak after the
    warm-up, since nobody knows the number of steps; weights are not averaged. The loss on held-out
    episodes is taken after each turn, outside the time, with the same noise for all.
    Raises ValueError if `config` holds no episodes out.
    """
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    flat = replace(config.optim, decay_steps=10**9, end_lr=config.optim.lr)
    config = replace(config, optim=flat, workers=0)
    runs = {count: _Run(replace(config, draws=count), device) for count in draws}
    held_out = next(iter(runs.values())).job.held_out
    if held_out is None:
        raise ValueError("no episodes are held out; set data.held_out to a share above 0")
    judged = list(held_out())
    curves: dict[int, list[Point]] = {count: [] for count in draws}
    turns = [(turn, count) for turn in range(points + 1) for count in draws]
    for turn, count in (bar := tqdm(turns, "turns")):
        runs[count].train(until=seconds * turn / points)
        point = runs[count].point(judged)
        curves[count].append(point)
        bar.set_postfix(draws=count, steps=point.steps, loss=f"{point.loss:.4f}")
    return DrawsBench(
        {count: tuple(curve) for count, curve in curves.items()},
        "wall" if device.type == "cuda" else "CPU",
        config.batch_size,
        torch.get_num_threads(),
    )


class _Run:
    """A model in training that can be stopped and judged at any step."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.job: Job = config.job()
        self.model = self.job.begun().to(device).train()
        freeze(self.model, (*config.freeze, *self.job.unreached))
        self.optimiser: Optimisers = make_optimiser(self.model, config.optim)
        self.seconds, self.steps = 0.0, 0

    def train(self, until: float) -> None:
        config = self.config
        while self.seconds < until:
            began = self._clock()
            set_learning_rate(self.optimiser, config.optim, self.steps, 10**9)
            update(
                self.model,
                self.optimiser,
                self.job.batch(self.steps),
                step=self.steps,
                device=self.device,
                precision=config.precision,
                clip=config.optim.clip,
            ).outcome()
            self.seconds += self._clock() - began
            self.steps += 1

    def point(self, judged: Sequence[Microbatch]) -> Point:
        loss = validation_loss(self.model, judged, self.device, self.config.precision)
        return Point(self.seconds, self.steps, loss)

    def _clock(self) -> float:
        return time.perf_counter() if self.device.type == "cuda" else time.process_time()


def plot(bench: DrawsBench, path: Path) -> Path:
    """Draw the curves into a PNG file. Raises ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib; install vla[viz]") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for draws, points in bench.curves.items():
        x, y = [p.seconds for p in points], [p.loss for p in points]
        axes.plot(x, y, marker="o", label=f"draws {draws}: {points[-1].steps} steps")
    axes.set_yscale("log")
    axes.set_xlabel(f"seconds of training ({bench.clock} time)")
    axes.set_ylabel("loss on held-out episodes")
    axes.legend()
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)
    return path
