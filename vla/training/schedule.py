"""Learning rates as pure functions of the step, so that resuming needs no scheduler state."""

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Schedule", "continued", "learning_rate", "multiplier"]


@dataclass(frozen=True)
class Schedule:
    """How a learning rate goes over a run, as a share of its peak; big_vision's curves.

    decay: "rsqrt" is 1 / √(1 + (s + shift − warmup) / timescale), which no length of run enters;
    "cosine" and "linear" go to 0 and to `end` at the run's last step.
    warmup: steps of linear rise. warmup_share: the same as a share of the run's steps, at least one
    step; instead of `warmup`. early: the rise starts at 1 / (warmup + 1), as openpi's, not at 0.
    cooldown: last steps, over which the rate falls to 0 on a line, times what it would have been.
    shift: steps of this run's batch that the curve has behind it when the run starts.
    end, power: of "linear", end + (1 − end) · (1 − progress)^power.

    Source: big_vision `utils.py: create_learning_rate_schedule`, whose durations may be given in
    epochs and examples too; here they are steps.
    """

    decay: Literal["cosine", "linear", "rsqrt"] = "cosine"
    warmup: int = 0
    warmup_share: float = 0.0
    early: bool = False
    cooldown: int = 0
    timescale: float = 10_000.0
    shift: float = 0.0
    end: float = 0.0
    power: float = 1.0

    def __post_init__(self):
        for name in ("warmup", "cooldown", "shift"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"schedule.{name} is {value}; it must be 0 or more steps")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"schedule.warmup_share is {self.warmup_share}; give a share, 0 to 1")
        if self.warmup and self.warmup_share:
            raise ValueError("schedule has both warmup and warmup_share; give one of them")
        if self.timescale <= 0:
            raise ValueError(f"schedule.timescale is {self.timescale}; give steps above 0")

    def rise(self, steps: int) -> int:
        """Steps of warm-up in a run of `steps`."""
        if not self.warmup_share:
            return self.warmup
        return max(1, round(self.warmup_share * steps))


def multiplier(schedule: Schedule, step: int, steps: int) -> float:
    """The share of the peak rate at which update `step` (from 0) of a run of `steps` is made."""
    warmup = schedule.rise(steps)
    progress = min(max((step - warmup) / max(1, steps - warmup), 0.0), 1.0)
    match schedule.decay:
        case "cosine":
            share = 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            share = schedule.end + (1 - schedule.end) * (1 - progress) ** schedule.power
        case "rsqrt":
            since = max(step - warmup, 0) + schedule.shift
            share = 1 / math.sqrt(1 + since / schedule.timescale)
    if step < warmup:
        start = 1 / (warmup + 1) if schedule.early else 0.0
        share *= start + (1 - start) * step / warmup
    if schedule.cooldown:
        share *= min(1.0, (steps - step) / schedule.cooldown)
    return share


def continued(schedule: Schedule, steps: int, batch_size: int, new_batch_size: int) -> Schedule:
    """An "rsqrt" schedule that goes on where `schedule` is after `steps` of `batch_size`.

    The curve stays the same one over examples: steps are counted in batches of `new_batch_size`.
    There is no new warm-up; give one with `dataclasses.replace`, the rate after it is this one's
    at step 0 then. Raises ValueError for another decay, or if the warm-up hasn't ended.
    """
    if schedule.decay != "rsqrt":
        raise ValueError(f"only an rsqrt schedule goes on over stages, not {schedule.decay}")
    warmup = schedule.rise(steps)
    if warmup > steps:
        raise ValueError(f"the warm-up of {warmup} steps has not ended after {steps}")
    scale = batch_size / new_batch_size
    return replace(
        schedule,
        warmup=0,
        warmup_share=0.0,
        cooldown=0,
        timescale=schedule.timescale * scale,
        shift=(schedule.shift + steps - warmup) * scale,
    )


def learning_rate(step: int, *, peak: float, warmup: int, decay_steps: int, end: float) -> float:
    """Linear warm-up, then half a cosine down to `end`, then constant.

    step: updates already made, from 0. warmup: steps of linear rise from `peak / (warmup + 1)`.
    decay_steps: step at which `end` is reached, warm-up included.

    Source: openpi `training/optimizer.py: CosineDecaySchedule`, which is optax's
    `warmup_cosine_decay_schedule`. LeRobot evaluates the cosine without subtracting the warm-up,
    which gives other values.
    """
    if step < warmup:
        start = peak / (warmup + 1)
        return start + (peak - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, decay_steps - warmup))
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))
