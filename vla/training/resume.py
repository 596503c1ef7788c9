"""Going on from a checkpoint: which one, and whether it is of this run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from vla.config import RunConfig, as_dict, defaults
from vla.training import checkpoint
from vla.training.log import Window
from vla.training.parallel import ParallelConfig
from vla.training.state import TrainState
from vla.training.world import World

__all__ = ["Progress", "resumed"]

# Fields that may differ between a checkpoint's run and the one that goes on from it.
FREE_ON_RESUME = {
    "output_dir",
    "steps",
    "device",
    "workers",
    "worker_timeout",
    "keep",
    "keep_every",
    "tensorboard",
    "trackers",
    "project",
    "trace",
    "peak_tflops",
    "skip_not_finite",
} | {
    *(f"{what}_every" for what in ("log", "eval", "save")),
    *(f"parallel.{field.name}" for field in fields(ParallelConfig)),
}


@dataclass
class Progress:
    """Of a run, as far as it isn't in tensors. step: updates asked for. window: means since the
    last report. skipped: steps left out."""

    step: int = 0
    window: Window = field(default_factory=Window)
    skipped: int = 0


def resumed(state: TrainState, config: RunConfig, checkpoints: Path, world: World) -> Progress:
    """Fill `state` from the newest whole checkpoint, if there is one, and tell how far it had come.

    Damaged ones are set aside. Raises ValueError for the checkpoint of a run with another config.
    """
    step = -1
    if world.first:
        for reason in checkpoint.set_aside_damaged(checkpoints):
            print(reason, flush=True)
        newest = checkpoint.newest(checkpoints)
        step = -1 if newest is None else int(newest.name)
    if (step := world.from_first(step)) < 0:
        return Progress()
    path = checkpoints / str(step)
    saved = checkpoint.read_state(path)
    _check_same(saved["config"], config, path)
    if saved["step"] > config.steps:
        raise ValueError(
            f"{path} is past the {config.steps} steps of this run; raise steps, or train anew "
            "in another output_dir"
        )
    state.read(path, world)
    return Progress(saved["step"], Window(saved["window"]), saved["skipped"])


def _check_same(saved: dict, config: RunConfig, path: Path) -> None:
    # a field that the run's version of this package didn't have yet was at its default
    before, after = defaults(config) | _flat(saved), _flat(as_dict(config))
    changed = [
        f"{name}: {before.get(name, 'absent')} then, {after.get(name, 'absent')} now"
        for name in sorted(before.keys() | after.keys())
        if name not in FREE_ON_RESUME and before.get(name) != after.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} was written by a run with another config; {'; '.join(changed)}. "
            "Give the same values to go on, or choose another output_dir"
        )


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
