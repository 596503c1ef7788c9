"""Runs one after the other, each of which starts from what the one before it left."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vla.config import load_config
from vla.training.loop import train

__all__ = ["QUICK", "chain"]

# What `quick` puts over the fields of every run.
QUICK = ("--steps", "3", "--batch-size", "4", "--eval-batches", "1", "--save-every", "2")


def chain(
    configs: Sequence[Path], overrides: Sequence[str] = (), *, quick: bool = False
) -> Iterator[Path]:
    """Train each run, with `overrides` as on a command line, and yield the folder of its result.

    Every run resumes from its newest checkpoint, so the chain goes on where it was killed; one that
    is done already only publishes its result again.
    Raises as `load_config` and `train` do, before anything is trained for a file that is no config.
    """
    fields = [*(QUICK if quick else ()), *overrides]
    runs = [load_config(path, fields) for path in configs]
    for run in runs:
        yield train(run, resume=True)
