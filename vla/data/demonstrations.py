"""Demonstrations to learn from: one item per frame, with the action chunk that follows it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from backbone.image import prepare
from backbone.numerics import Resize
from vla.data.check import check_or_raise
from vla.data.dataset import ACTION, STATE, Dataset, open_dataset
from vla.data.stats import frame_rows

GB = 1e9


class Demonstrations:
    """Map-style over a LeRobotDataset v3; item i is a dict

        images       {camera: RGB [R, R, 3]}, fitted to R = image_size as `backbone.image.prepare`
                     does: uint8 letterboxed as in openpi, or what `resize` says
        state        float32 [S], robot units
        actions      float32 [H, A], robot units: those of this frame and the H − 1 after it
        action_valid bool [H], False past the episode's end, where the last action is repeated
        task         str, the instruction
        episode, frame  int, where the item is from

    Attributes: cameras (in order), horizon, image_size, episodes (those that are read), fps,
    state_dim, action_dim, tasks (every instruction of the dataset).
    """

    def __init__(
        self,
        root: str | Path,
        horizon: int,
        cameras: Sequence[str] | None = None,
        image_size: int = 224,
        episodes: Sequence[int] | None = None,
        *,
        cache: bool = True,
        cache_gb: float = 4.0,
        allow_short_episodes: bool = False,
        progress: bool = True,
        resize: Resize = "pil",
    ):
        """Opens and checks the dataset at `root`.

        Args:
            root: folder of a LeRobotDataset v3.
            horizon: actions in a chunk, H.
            cameras: names without `observation.images.`, in the order the model gets; None: all.
            image_size: side of the model's square pictures, pixels.
            episodes: which to read; None: all.
            cache: decode every picture once, now, and keep it in memory; otherwise each item
                decodes its own (for datasets that do not fit; use workers).
            cache_gb: most memory that the cache may take, 10⁹ bytes.
            allow_short_episodes: take episodes shorter than the horizon too; none of their
                chunks is full.
            progress: show a bar while decoding.
            resize: how a picture becomes the model's square, as its `Numerics` say.

        Raises:
            FileNotFoundError: no dataset at `root`.
            ValueError: another version, a fault that `vla check` lists, an unknown camera or
                episode, an episode shorter than the horizon, or a cache larger than `cache_gb`.
        """
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; a chunk has at least 1 action")
        self.dataset = open_dataset(root)
        check_or_raise(self.dataset)
        self.cameras = _choose_cameras(self.dataset, cameras)
        self.horizon, self.image_size = horizon, image_size
        self.resize: Resize = resize
        self._rows = frame_rows(self.dataset, episodes)
        self.episodes = list(range(len(self.dataset.episodes)) if episodes is None else episodes)
        if not allow_short_episodes:
            _check_lengths(self.dataset, self.episodes, horizon)
        self._load_columns()
        self._pictures = self._decode_all(cache_gb, progress) if cache else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"item {i} of {len(self)} demonstrations' frames")
        row = int(self._rows[i])
        episode = int(self._episode[row])
        start, length = self.dataset.starts[episode], self.dataset.lengths[episode]
        wanted = row + np.arange(self.horizon)
        last = start + length - 1
        return {
            "images": self._images(i % len(self), episode, row - start),
            "state": self._state[row],
            "actions": self._actions[np.minimum(wanted, last)],
            "action_valid": wanted <= last,
            "task": self.dataset.tasks[int(self._task[row])],
            "episode": episode,
            "frame": row - start,
        }

    def name(self, i: int) -> str:
        """What messages call item `i`: dataset, episode and frame."""
        row = int(self._rows[i])
        episode = int(self._episode[row])
        return f"{self.dataset.root}: episode {episode} frame {row - self.dataset.starts[episode]}"

    @property
    def fps(self) -> float:
        return self.dataset.fps

    @property
    def state_dim(self) -> int:
        return self._state.shape[1]

    @property
    def action_dim(self) -> int:
        return self._actions.shape[1]

    @property
    def tasks(self) -> list[str]:
        return [self.dataset.tasks[i] for i in sorted(self.dataset.tasks)]

    def _load_columns(self) -> None:
        """The small columns, whole; asking LeRobot for chunks would decode their pictures too."""
        total = sum(self.dataset.lengths)
        self._state = self.dataset.column(STATE).astype(np.float32).reshape(total, -1)
        self._actions = self.dataset.column(ACTION).astype(np.float32).reshape(total, -1)
        self._episode = self.dataset.column("episode_index")
        self._task = self.dataset.column("task_index")

    def _images(self, i: int, episode: int, frame: int) -> dict[str, np.ndarray]:
        if self._pictures is not None:
            return {camera: pictures[i] for camera, pictures in self._pictures.items()}
        return {
            camera: self._fit(self.dataset.frames(camera, episode, frame, 1)[0])
            for camera in self.cameras
        }

    def _fit(self, picture: np.ndarray) -> np.ndarray:
        return prepare(picture, self.image_size, self.resize)

    def _decode_all(self, most_gb: float, progress: bool) -> dict[str, np.ndarray]:
        """Every picture of every camera, [len(self), R, R, 3], episode by episode."""
        shape = (len(self), self.image_size, self.image_size, 3)
        dtype = self._fit(np.zeros((1, 1, 3), np.uint8)).dtype  # uint8, or float32 for some ways
        needed = len(self.cameras) * np.prod(shape, dtype=float) * dtype.itemsize / GB
        if needed > most_gb:
            raise ValueError(
                f"caching {len(self)} frames of {len(self.cameras)} cameras at {self.image_size} "
                f"px takes {needed:.3g} GB, allowed are {most_gb:.3g}; use cache=False, fewer "
                "episodes, a smaller image_size, or a larger cache_gb"
            )
        pictures = {camera: np.empty(shape, dtype) for camera in self.cameras}
        at = 0
        for episode in tqdm(self.episodes, desc="decoding", unit="ep", disable=not progress):
            for camera, store in pictures.items():
                frames = self.dataset.frames(camera, episode)
                for k, frame in enumerate(frames):
                    store[at + k] = self._fit(frame)
            at += self.dataset.lengths[episode]
        return pictures


def split(
    episodes: int | Sequence[int], fraction: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Episodes to train on and episodes to hold out, each in ascending order.

    episodes: how many there are, or which. fraction: share to hold out, in [0, 1); above 0 it is at
    least one episode. seed: the same one gives the same split.
    Raises ValueError if no episode would be left to train on.
    """
    chosen = list(range(episodes)) if isinstance(episodes, int) else list(episodes)
    if not 0 <= fraction < 1:
        raise ValueError(f"the held-out fraction is {fraction}; it is a share in [0, 1)")
    held = max(1, round(fraction * len(chosen))) if fraction > 0 else 0
    if held >= len(chosen):
        raise ValueError(
            f"holding out {held} of {len(chosen)} episodes leaves none to train on; "
            "collect more, or hold out 0"
        )
    order = np.random.default_rng(seed).permutation(len(chosen))
    return sorted(chosen[i] for i in order[held:]), sorted(chosen[i] for i in order[:held])


def _choose_cameras(dataset: Dataset, cameras: Sequence[str] | None) -> tuple[str, ...]:
    held = dataset.cameras
    if not held:
        raise ValueError(f"{dataset.root} has no camera; a policy needs at least one")
    if cameras is None:
        return tuple(held)
    for camera in cameras:
        if camera not in held:
            close = difflib.get_close_matches(camera.rpartition(".")[2], held, n=1)
            hint = f"did you mean {close[0]}?" if close else "choose among those"
            raise ValueError(
                f"{dataset.root} has no camera {camera}; it has {', '.join(held)}; {hint}"
            )
    if not cameras or len(set(cameras)) < len(cameras):
        raise ValueError(f"cameras are {list(cameras)}; name each of at least one camera once")
    return tuple(cameras)


def _check_lengths(dataset: Dataset, episodes: Sequence[int], horizon: int) -> None:
    shortest = min(episodes, key=lambda episode: dataset.lengths[episode])
    length = dataset.lengths[shortest]
    if length < horizon:
        raise ValueError(
            f"horizon {horizon} is longer than episode {shortest} of {dataset.root}, which has "
            f"{length} frames; set horizon={length} or less, leave that episode out, or pass "
            "allow_short_episodes=True"
        )
