"""Learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

__all__ = ["learning_rate"]


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
