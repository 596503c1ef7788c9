"""Which samples a step sees, and with which noise: pure functions of the seed and a position.

Training reads one endless sequence of positions 0, 1, 2, …; step `k` of a run with batch size `B`
takes the positions `k·B … k·B + B − 1`. Everything random about a position follows from
`(seed, position)` alone, so a resumed run, or one spread over another number of processes, sees the
same samples with the same noise.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vla.training.world import World

__all__ = [
    "CHOICE",
    "HELD_OUT_SEED",
    "MIXING",
    "ORDER",
    "READING",
    "TRAIN_NOISE",
    "VALIDATION_NOISE",
    "draw",
    "positions",
    "sample_indices",
    "shares",
    "stream",
]

# Names of independent random streams: the second word of the Philox key.
ORDER, TRAIN_NOISE, VALIDATION_NOISE, CHOICE, READING, MIXING = 1, 2, 3, 4, 5, 6

HELD_OUT_SEED = 1_000_000  # added to the seed: scenes that training never draws


def stream(seed: int, purpose: int, position: int) -> np.random.Generator:
    """A generator for one position; different (seed, purpose, position) never share numbers.

    Philox is counter-based: `position` goes into the highest word of the counter, so making
    a stream costs no seeding and two streams are 2^192 numbers apart.
    """
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, 0, position]))


def positions(step: int, batch_size: int) -> range:
    """Positions that `step` trains on."""
    return range(step * batch_size, (step + 1) * batch_size)


def shares(step: int, batch_size: int, accumulate: int, world: World) -> list[range]:
    """The positions of `step` that this process trains on, by micro-batch.

    The processes of a world share each micro-batch equally, so that the batch of a step is the same
    whatever their number. Raises ValueError if it does not divide.
    """
    parts = accumulate * world.size
    if batch_size % parts:
        raise ValueError(
            f"batch_size {batch_size} does not divide into {accumulate} micro-batches for "
            f"{world.size} processes each; change batch_size, accumulate or the number of processes"
        )
    each = batch_size // parts
    start = step * batch_size + world.rank * each
    return [range(k, k + each) for k in range(start, start + batch_size, each * world.size)]


def sample_indices(seed: int, positions: Sequence[int], count: int) -> list[int]:
    """Dataset indices in `range(count)` at these positions: one fresh permutation per epoch."""
    if count < 1:
        raise ValueError("no samples to train on; the dataset, or its training split, is empty")
    return [int(_permutation(seed, p // count, count)[p % count]) for p in positions]


@lru_cache(maxsize=2)  # a batch touches at most two epochs, unless it is larger than the dataset
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return stream(seed, ORDER, epoch).permutation(count)


def draw(
    seed: int, positions: Sequence[int], shape: tuple[int, ...], *, purpose: int = TRAIN_NOISE
) -> tuple[np.ndarray, np.ndarray]:
    """Noise and time draws for each position.

    shape: of one sample's noise, leading axis = draws per sample: `(draws, horizon, action_dim)`.
    Returns noise float32 [B, *shape], standard normal, and u float64 [B, draws], uniform in [0, 1).
    """
    generators = [stream(seed, purpose, position) for position in positions]
    uniform = np.stack([g.random(shape[0]) for g in generators])
    noise = np.stack([g.standard_normal(shape, dtype=np.float32) for g in generators])
    return noise, uniform
