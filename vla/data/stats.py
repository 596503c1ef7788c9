"""Statistics that put states and actions on a common scale.

Saved in openpi's layout, so a file of theirs loads here and one of ours loads there:

    {"norm_stats": {"state": {"mean": [...], "std": [...], "q01": [...], "q99": [...]},
                    "actions": {...}}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.dataset import ACTION, STATE, Dataset, open_dataset

NAMES = ("mean", "std", "q01", "q99", "min", "max")


@dataclass(frozen=True)
class FeatureStats:
    """Per dimension of a feature, float32 [D] each, in the feature's own unit.

    std is that of the population (divided by N). q01 and q99 are exact quantiles. What a file does
    not hold is None; `mean` and `std` always are there.
    Raises ValueError if lengths differ, a number is not finite, or a std is negative.
    """

    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray | None = None
    q99: np.ndarray | None = None
    min: np.ndarray | None = None
    max: np.ndarray | None = None
    count: int | None = None  # frames they were computed from

    def __post_init__(self):
        for name in NAMES:
            values = getattr(self, name)
            if values is None:
                continue
            values = np.asarray(values, np.float32)
            object.__setattr__(self, name, values)
            if values.shape != np.shape(self.mean) or values.ndim != 1:
                raise ValueError(
                    f"{name} has shape {list(values.shape)} but mean {list(np.shape(self.mean))}; "
                    "statistics are one number per dimension, compute them again"
                )
            if not np.isfinite(values).all():
                dim = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ValueError(f"{name}[{dim}] is {values[dim]}; compute the statistics again")
        if (self.std < 0).any():
            raise ValueError(f"std is negative ({self.std.min()}); compute the statistics again")

    @property
    def dim(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class NormStats:
    """Statistics of the robot's state and of its actions."""

    state: FeatureStats
    actions: FeatureStats

    def save(self, path: str | Path) -> None:
        """Write JSON; a plain text file that people can read and compare."""
        stats = {name: _to_json(getattr(self, name)) for name in ("state", "actions")}
        Path(path).write_text(json.dumps({"norm_stats": stats}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> NormStats:
        """Read a file of ours or of openpi.

        Raises FileNotFoundError if there is none, ValueError if it does not hold such statistics.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no statistics at {path}; `vla stats DATASET` computes them")
        try:
            stats = json.loads(path.read_text(encoding="utf-8"))["norm_stats"]
            return cls(_from_json(stats["state"]), _from_json(stats["actions"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'{path} does not hold {{"norm_stats": {{"state": …, "actions": …}}}} with mean '
                f"and std of each ({error})"
            ) from error

    def __str__(self) -> str:
        return "\n".join(
            _table(name, stats)
            for name, stats in (("state", self.state), ("actions", self.actions))
        )


def feature_stats(values: np.ndarray) -> FeatureStats:
    """Statistics over the rows of `values`, [frames, D]; summed in float64."""
    values = np.asarray(values, np.float64)
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    return FeatureStats(
        mean=values.mean(axis=0),
        std=values.std(axis=0),
        q01=q01,
        q99=q99,
        min=values.min(axis=0),
        max=values.max(axis=0),
        count=len(values),
    )


def norm_stats(source: str | Path | Dataset, episodes: Sequence[int] | None = None) -> NormStats:
    """Statistics of a LeRobotDataset v3, over every frame of `episodes` (None: all).

    Reads the data files alone; no picture is decoded. Every frame counts once, whatever the
    horizon.
    Raises ValueError if an episode is not in the dataset or a value is not finite, and as
    `open_dataset` does.
    """
    dataset = source if isinstance(source, Dataset) else open_dataset(source)
    rows = frame_rows(dataset, episodes)
    return NormStats(
        state=feature_stats(_vectors(dataset, STATE)[rows]),
        actions=feature_stats(_vectors(dataset, ACTION)[rows]),
    )


def frame_rows(dataset: Dataset, episodes: Sequence[int] | None = None) -> np.ndarray:
    """Rows of all frames of `episodes` (None: all), int64, episode by episode.

    Raises ValueError if an episode is not in the dataset, or there is none.
    """
    total = len(dataset.episodes)
    chosen = range(total) if episodes is None else episodes
    unknown = [e for e in chosen if not 0 <= e < total]
    if unknown:
        raise ValueError(f"{dataset.root} has episodes 0 to {total - 1}; it has no {unknown[0]}")
    if not len(chosen):
        raise ValueError(
            f"{dataset.root}: no episodes to read; collect some, or choose at least one"
        )
    spans = [np.arange(dataset.starts[e], dataset.starts[e] + dataset.lengths[e]) for e in chosen]
    return np.concatenate(spans)


def _vectors(dataset: Dataset, name: str) -> np.ndarray:
    values = dataset.column(name)
    return values[:, None] if values.ndim == 1 else values


def _to_json(stats: FeatureStats) -> dict[str, Any]:
    present = {k: v for k, v in asdict(stats).items() if v is not None}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in present.items()}


def _from_json(stats: dict[str, Any]) -> FeatureStats:
    rest = {name: stats.get(name) for name in (*NAMES[2:], "count")}
    return FeatureStats(stats["mean"], stats["std"], **rest)


def _table(title: str, stats: FeatureStats) -> str:
    present = [name for name in NAMES if getattr(stats, name) is not None]
    frames = "" if stats.count is None else f", {stats.count} frames"
    lines = [f"{title}: {stats.dim} dimensions{frames}"]
    lines.append("  dim" + "".join(f"{name:>11}" for name in present))
    for dim in range(stats.dim):
        numbers = "".join(f"{getattr(stats, name)[dim]:11.4g}" for name in present)
        lines.append(f"  {dim:3d}{numbers}")
    return "\n".join(lines)
