"""Demonstrations of a scripted expert, as a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

import envs
from envs.experts import Demonstration
from vla.data.writer import write_dataset

ATTEMPTS = 20  # per wanted episode; an expert that fails more often is broken


def collect(
    env_id: str | Sequence[str],
    episodes: int,
    root: str | Path,
    *,
    seed: int = 0,
    noise: float = 0.2,
    hold: int = 1,
    image_size: int | None = None,
    fps: int | None = None,
    videos: bool = True,
    env_kwargs: dict[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Run the scripted expert and keep its successful episodes as a LeRobotDataset v3 at `root`.

    Args:
        env_id: an environment, or several that share cameras and dimensions; they take turns.
        episodes: successful episodes to keep, over all environments.
        root: folder to write; it must not exist, and appears only when it is complete.
        seed: of the first episode of each environment; the following ones count up, failed ones
            included. The same arguments give the same demonstrations.
        noise: added to the executed actions, in action units, so that the states include mistakes;
            the stored actions are the expert's own.
        hold: steps that one draw of the noise lasts.
        image_size: side of the pictures; None: the environment's own.
        fps: frames per second; None: the environment's `render_fps`, else 10.
        videos: H.264, or lossless pictures in the parquet files.
        env_kwargs: for the environment.
        progress: show a bar.

    Returns `root`.

    Raises:
        FileExistsError: there is something at `root`.
        ValueError: unknown environment, one without an expert, or one whose expert hardly succeeds.
    """
    ids = [env_id] if isinstance(env_id, str) else list(env_id)
    if episodes < 1 or not ids:
        raise ValueError(f"asked for {episodes} episodes of {ids}; ask for at least one of one")
    if Path(root).exists():  # before the first episode, not after the last
        raise FileExistsError(f"{root} exists already; delete it or choose another folder")
    kwargs = dict(env_kwargs or {}) | ({} if image_size is None else {"image_size": image_size})
    rate = fps if fps is not None else _fps(ids[0], kwargs)
    kept = _take_turns([_successes(i, seed, noise, hold, kwargs) for i in ids], episodes)
    bar = tqdm(kept, desc="collecting", total=episodes, unit="ep", disable=not progress)
    return write_dataset(bar, root, rate, videos=videos, robot_type=",".join(ids))


def _successes(
    env_id: str, seed: int, noise: float, hold: int, kwargs: dict[str, Any]
) -> Iterator[Demonstration]:
    kept = 0
    attempts = envs.demonstrations(env_id, count(seed), noise=noise, hold=hold, env_kwargs=kwargs)
    for tried, demonstration in enumerate(attempts, start=1):
        if demonstration.success:
            kept += 1
            yield demonstration
        elif tried >= ATTEMPTS and tried > ATTEMPTS * kept:
            raise ValueError(
                f"the expert of {env_id} succeeded in {kept} of {tried} episodes with noise "
                f"{noise}; use less noise, or mend the expert"
            )


def _take_turns(sources: list[Iterator[Demonstration]], total: int) -> Iterator[Demonstration]:
    for i in range(total):
        yield next(sources[i % len(sources)])


def _fps(env_id: str, kwargs: dict[str, Any]) -> int:
    env = envs.make(env_id, **kwargs)
    try:
        return int(env.metadata.get("render_fps") or 10)
    finally:
        env.close()
