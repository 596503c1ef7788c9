"""Write demonstrations as a LeRobotDataset v3."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from envs.experts import Demonstration
from vla.data.dataset import ACTION, IMAGES, STATE

SEED = "episode_seed"

# H.264 with full colour resolution. On the small coloured objects of 96-px pictures it is off by 1
# of 255, LeRobot's default (AV1, 4:2:0, crf 30) by 9, at twice the size and 4/5 of the time.
# A key frame every two: any picture is found by decoding at most two.
VIDEO = {"vcodec": "h264", "pix_fmt": "yuv444p", "preset": "superfast", "crf": 14, "g": 2}

# LeRobot rewrites the newest file with every episode: with its own 200 MB, the 1500th episode of
# small pictures takes three times as long as the first one.
VIDEO_FILE_MB = 8


def write_dataset(
    demonstrations: Iterable[Demonstration],
    root: str | Path,
    fps: int,
    *,
    videos: bool = True,
    robot_type: str | None = None,
) -> Path:
    """Write every demonstration as one episode of a new LeRobotDataset v3 at `root`.

    Features: observation.images.<camera>, observation.state, action, task and `episode_seed`.
    The folder is built beside `root` under another name and gets its own when it is complete: at
    `root` there is a whole dataset or nothing.

    Args:
        demonstrations: all with the same cameras and sizes; the first one decides the features.
        fps: frames per second.
        videos: H.264 videos; otherwise lossless PNG inside the parquet files, a third slower.
        robot_type: kept in meta/info.json.

    Raises:
        FileExistsError: there is something at `root`.
        ValueError: no demonstrations, or one with other features than the first.
    """
    root = Path(root)
    if root.exists():
        raise FileExistsError(f"{root} exists already; delete it or choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    try:
        with _quiet():
            _write(demonstrations, partial, fps, videos, robot_type)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _write(
    demonstrations: Iterable[Demonstration],
    root: Path,
    fps: int,
    videos: bool,
    robot_type: str | None,
) -> None:
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset, features = None, {}
    try:
        for demonstration in demonstrations:
            found = _features(demonstration, videos)
            if dataset is None:
                features = found
                dataset = LeRobotDataset.create(
                    repo_id=f"local/{root.name.strip('.')}",
                    root=root,
                    fps=fps,
                    features=features,
                    robot_type=robot_type,
                    use_videos=videos,
                    video_backend="pyav",
                    rgb_encoder=RGBEncoderConfig(**VIDEO),
                    encoder_threads=1,  # pictures are small, more threads only wait
                    streaming_encoding=True,  # no detour through PNG files
                    encoder_queue_maxsize=0,  # unbounded: a full queue would drop frames
                    metadata_buffer_size=100,
                    video_files_size_in_mb=VIDEO_FILE_MB,
                )
            _check_same(features, found, demonstration)
            for frame in _frames(demonstration):
                dataset.add_frame(frame)
            dataset.save_episode(parallel_encoding=False)
        if dataset is None:
            raise ValueError("there are no demonstrations to write; give at least one")
        dataset.finalize()
    except BaseException:
        if dataset is not None:
            _abandon(dataset)
        raise


def _abandon(dataset: Any) -> None:
    """Close all that LeRobot holds open: left alone it would be written out when it is collected,
    into a folder that has gone by then."""
    dataset.writer.cancel_pending_videos()
    with contextlib.suppress(OSError, pa.ArrowException):  # e.g. the full disk that brought us here
        dataset.finalize()


def _frames(demonstration: Demonstration) -> Iterator[dict[str, Any]]:
    for observation, action in zip(demonstration.observations, demonstration.actions, strict=True):
        frame = {k: v for k, v in observation.items() if k.startswith(IMAGES)}
        frame[STATE] = np.asarray(observation[STATE], np.float32)
        frame[ACTION] = np.asarray(action, np.float32)
        frame[SEED] = np.array([demonstration.seed], np.int64)
        yield {**frame, "task": demonstration.task}


def _features(demonstration: Demonstration, videos: bool) -> dict[str, dict[str, Any]]:
    observation = demonstration.observations[0]
    kind, names = ("video" if videos else "image"), ["height", "width", "channels"]
    features = {
        name: {"dtype": kind, "shape": tuple(value.shape), "names": names}
        for name, value in observation.items()
        if name.startswith(IMAGES)
    }
    for name, value in ((STATE, observation[STATE]), (ACTION, demonstration.actions[0])):
        features[name] = {"dtype": "float32", "shape": tuple(np.shape(value)), "names": None}
    features[SEED] = {"dtype": "int64", "shape": (1,), "names": None}
    return features


def _check_same(first: dict, found: dict, demonstration: Demonstration) -> None:
    if found != first:
        ours, theirs = ({k: v["shape"] for k, v in f.items()} for f in (found, first))
        raise ValueError(
            f"{demonstration.env_id} seed {demonstration.seed} gives {ours}, the first "
            f"demonstration gave {theirs}; a dataset holds one kind of robot, write two datasets"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without `datasets`' bar per episode and libav's chatter, which would bury our own bar."""
    import datasets
    from av import logging

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    logging.set_libav_level(logging.ERROR)
    try:
        yield
    finally:
        logging.set_libav_level(logging.INFO)  # libav's own default
        if not bars:
            datasets.enable_progress_bars()
