"""How long a run takes, what it reads meanwhile, what its checkpoints hold, what failures cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vla.config import RunConfig
from vla.planning.plan import Plan

__all__ = ["Course", "Surroundings", "course"]

DAY = 86_400.0
FAILURE_HOURS = 50_700.0  # GPU-hours between two: Llama 3's 419 in 54 days of 16,384 H100s


@dataclass(frozen=True)
class Surroundings:
    """What a machine and its data are taken to be like.

    picture_kb: bytes of an encoded picture, thousands. failure_hours: GPU-hours between two
    failures that stop a run (default: arXiv 2407.21783, section 3.3.4). restart: minutes from a
    failure to the first new step. disk: GB/s at which a checkpoint is written, by all processes
    together; training waits for it.
    """

    picture_kb: float = 100.0
    failure_hours: float = FAILURE_HOURS
    restart: float = 10.0
    disk: float = 2.0

    def __post_init__(self):
        for name in ("picture_kb", "failure_hours", "restart", "disk"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")


@dataclass(frozen=True)
class Course:
    """Of a whole run at the plan's MFU. days: without failures. pictures, encoded, decoded: a
    second, the latter in bytes, of files and of pixels for the model. checkpoint: bytes of one.
    interval: seconds between two. failures: a day. lost: share of all time that goes to writing
    checkpoints, to steps that are made again, and to restarts; least: the same at the best
    interval, `best` seconds.
    """

    gpus: int
    mfu: float
    samples: int
    days: float
    pictures: float
    encoded: float
    decoded: float
    checkpoint: float
    interval: float
    failures: float
    lost: float
    best: float
    least: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.samples:,} samples in {self.days:.3g} days at {self.mfu:.0%} MFU\n"
            f"reads {self.pictures:,.0f} pictures/s: {self.encoded / 1e6:,.3g} MB/s of files, "
            f"{self.decoded / 1e6:,.3g} MB/s of pixels\n"
            f"a checkpoint of {self.checkpoint / 1e9:.3g} GB every {self.interval / 60:.3g} min; "
            f"{self.failures:.2g} failures a day, {self.lost * 24 * 60:.2g} min a day lost to both"
            f" (at best {self.least * 24 * 60:.2g}, every {self.best / 60:.3g} min)"
        )


def course(config: RunConfig, plan: Plan, around: Surroundings | None = None) -> Course:
    """What `plan`, made of `config`, means for the run from its first step to its last.

    days = steps · batch_size · FLOPs of a sample / (GPUs · MFU · peak). A failure costs half an
    interval and a restart; the interval that loses least is √(2 · writing · time between failures)
    (Young, 1974).
    """
    around = around or Surroundings()
    rate = plan.samples_per_second
    samples = config.steps * config.batch_size
    pictures = rate * plan.cameras
    whole = plan.shards * (plan.weights + plan.moments + plan.average)
    checkpoint = whole + plan.shards * plan.weights  # and the result, put together
    writing = checkpoint / (around.disk * 1e9)
    interval = config.save_every * config.batch_size / rate
    between = around.failure_hours * 3600 / plan.gpus
    best = math.sqrt(2 * writing * between)

    def lost(interval: float) -> float:
        return writing / interval + (interval / 2 + 60 * around.restart) / between

    return Course(
        plan.gpus,
        plan.mfu,
        samples,
        samples / rate / DAY,
        pictures,
        pictures * around.picture_kb * 1e3,
        pictures * 3 * plan.resolution**2,
        checkpoint,
        interval,
        DAY / between,
        lost(interval),
        best,
        lost(best),
    )
