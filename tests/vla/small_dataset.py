"""A tiny LeRobotDataset v3 that tests build once and damage copies of."""

from pathlib import Path

import numpy as np

from envs.experts import Demonstration
from vla.data.writer import write_dataset

LENGTHS = (5, 4, 7)
TASKS = ("push the red cube", "open the drawer", "push the red cube")
FPS = 10
HEIGHT, WIDTH = 24, 32


def demonstration(seed: int, length: int, task: str = "push the red cube") -> Demonstration:
    """Pictures with a square that moves one pixel per frame, random states and actions."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(length, 3)).astype(np.float32)
    observations = [
        {
            "observation.images.top": picture(seed, t, (200, 60, 40)),
            "observation.images.wrist": picture(seed + 1, t, (40, 90, 210)),
            "observation.state": states[t],
            "task": task,
        }
        for t in range(length)
    ]
    actions = rng.normal(size=(length, 2)).astype(np.float32)
    return Demonstration("fake", seed, task, observations, actions, success=True)


def picture(seed: int, t: int, colour: tuple[int, int, int]) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    x, y = seed % 8 + t, seed % 5
    image[y : y + 12, x : x + 12] = colour
    return image


def demonstrations() -> list[Demonstration]:
    return [
        demonstration(seed, length, task)
        for seed, (length, task) in enumerate(zip(LENGTHS, TASKS, strict=True))
    ]


def build(root: Path, *, videos: bool = True) -> Path:
    return write_dataset(demonstrations(), root, FPS, videos=videos)
