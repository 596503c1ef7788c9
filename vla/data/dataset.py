"""A LeRobotDataset v3 folder on this machine, read through LeRobot.

    meta/info.json                        fps, features, path templates
    meta/tasks.parquet                    instruction ↔ task_index
    meta/episodes/chunk-*/file-*.parquet  one row per episode: length, files, start in each video
    data/chunk-*/file-*.parquet           one row per frame: state, action, timestamp, indices
    videos/<camera>/chunk-*/file-*.mp4    many episodes per file; or images inside the data files

Metadata, rows and pictures come from LeRobot's own functions. Around them: the network is never
asked, where `LeRobotDataset(...)` looks on the Hub for a file that is missing; what is wrong is
said in one line; and pictures come by the episode, one seek in the video for all of them.
`import lerobot` takes seconds, so it waits until a dataset is opened.
"""

from __future__ import annotations

import json
import os.path
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.data.parquet import require_columns

if TYPE_CHECKING:
    import datasets
    from lerobot.datasets import LeRobotDatasetMetadata

IMAGES = "observation.images."
STATE = "observation.state"
ACTION = "action"
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
# What every episode's row in meta/episodes has, besides its place in each video.
EPISODE_COLUMNS = (
    "episode_index",
    "length",
    "dataset_from_index",
    "dataset_to_index",
    "data/chunk_index",
    "data/file_index",
)
# Of a frame: how far a picture's time may be from the one asked for. Joining files rounds times;
# at half a frame the next picture would pass for the one that is missing.
TOLERANCE = 0.4


@dataclass(frozen=True)
class Dataset:
    """The folder at `root` as LeRobot describes it; rows and pictures are read when asked for."""

    root: Path
    meta: LeRobotDatasetMetadata

    @property
    def fps(self) -> float:
        return self.meta.fps

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        return self.meta.features

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras; `observation.images.` is left out where a feature has it."""
        depth = self.meta.depth_keys
        return [key.removeprefix(IMAGES) for key in self.meta.camera_keys if key not in depth]

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One row of meta/episodes per episode."""
        return [] if self.meta.episodes is None else self.meta.episodes.to_list()

    @cached_property
    def tasks(self) -> dict[int, str]:
        """Instructions by task_index."""
        if self.meta.tasks is None:
            return {}
        return {int(index): str(task) for task, index in self.meta.tasks["task_index"].items()}

    @cached_property
    def lengths(self) -> list[int]:
        """Frames of each episode."""
        return [int(episode["length"]) for episode in self.episodes]

    @cached_property
    def starts(self) -> list[int]:
        """Row of each episode's first frame."""
        return [int(episode["dataset_from_index"]) for episode in self.episodes]

    @cached_property
    def data_files(self) -> list[Path]:
        """The files of frames that the episodes name, in the order of their rows."""
        places = {(e["data/chunk_index"], e["data/file_index"]) for e in self.episodes}
        return [
            self._inside(self.meta.data_path.format(chunk_index=chunk, file_index=file))
            for chunk, file in sorted(places)
        ]

    @cached_property
    def _rows(self) -> datasets.Dataset:
        """The rows of all frames, as in `LeRobotDataset.hf_dataset`, without its way to the Hub."""
        from datasets.exceptions import DatasetGenerationError
        from lerobot.datasets.feature_utils import get_hf_features_from_features
        from lerobot.datasets.io_utils import load_nested_dataset

        for path in self.data_files:
            require_columns(path, (name for name in BOOKKEEPING if name in self.features))
        features = get_hf_features_from_features(self.features)
        try:
            rows = load_nested_dataset(self.root / "data", features)
        except DatasetGenerationError as error:
            hint = f"`vla check {self.root}` says more"
            raise _unreadable(self.root / "data", error, hint) from error
        if len(rows) != sum(self.lengths):
            raise ValueError(
                f"{self.root / 'data'} has {len(rows)} rows, meta/episodes counts "
                f"{sum(self.lengths)} frames; `vla check {self.root}` says where they differ"
            )
        return rows

    def column(self, name: str) -> np.ndarray:
        """One numeric column: [frames] of a scalar feature, [frames, D] of a vector.

        Integers are int64, fractions float32. No picture is decoded.
        Raises ValueError if a file is damaged or lacks the column, FileNotFoundError if it is gone.
        """
        if name not in self.features:
            raise ValueError(
                f"{self.root} has no feature {name}, only {', '.join(self.features)}; "
                "rename yours to it"
            )
        return np.asarray(self._rows.with_format("numpy")[name][:])

    def feature_name(self, camera: str) -> str:
        """The feature that holds a camera's pictures."""
        return camera if camera in self.features else IMAGES + camera

    def video_file(self, camera: str, episode: int) -> Path:
        """The video that holds an episode's pictures of a camera.

        Raises ValueError if the episode has none.
        """
        key = self.feature_name(camera)
        row = self.episodes[episode]
        chunk, file = (row.get(f"videos/{key}/{name}_index") for name in ("chunk", "file"))
        if chunk is None or file is None or self.meta.video_path is None:
            raise ValueError(
                f"{self.root}: camera {camera} is declared but episode {episode} has no video of "
                "it; record it again or drop the camera from meta/info.json"
            )
        template = self.meta.video_path
        return self._inside(template.format(video_key=key, chunk_index=chunk, file_index=file))

    def frames(
        self, camera: str, episode: int, first: int = 0, count: int | None = None
    ) -> np.ndarray:
        """Consecutive pictures of an episode, uint8 RGB [count, H, W, 3].

        first: frame of the episode to begin with. count: how many; None: to the episode's end.
        Raises ValueError, naming episode, camera and file, if the video does not hold them.
        """
        count = self.lengths[episode] - first if count is None else count
        key = self.feature_name(camera)
        if self.features[key]["dtype"] == "image":
            row = self.starts[episode] + first
            pictures = self._rows[key][row : row + count]
            return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        path = self.video_file(camera, episode)
        start = float(self.episodes[episode][f"videos/{key}/from_timestamp"])
        try:
            return _decode(path, [start + (first + i) / self.fps for i in range(count)], self.fps)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{self.root}: episode {episode}, camera {camera}: {error}; "
                "copy the file again or record the episode again"
            ) from error

    def _inside(self, relative: str) -> Path:
        """`root / relative`. Raises ValueError if that leads out of the dataset's folder.

        Links inside it may lead anywhere: the Hub's cache is made of them.
        """
        if os.path.isabs(relative) or os.path.normpath(relative).startswith(".."):
            raise ValueError(
                f"{self.root}: meta/info.json leads to {relative}, outside the dataset; "
                "restore LeRobot's own data_path and video_path"
            )
        return self.root / relative


def open_dataset(root: str | Path) -> Dataset:
    """Read the metadata of a LeRobotDataset v3.

    Raises FileNotFoundError if there is no dataset at `root`, ValueError if it is of another
    version or its metadata cannot be read; each says what to do.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no dataset at {root}; make one with `vla collect ENV --episodes N --root {root}`, "
            "or give the folder that holds meta/, data/ and videos/"
        )
    info = _read_json(root / "meta/info.json")
    _require_info(root, info)
    if info["total_episodes"]:
        _require_tables(root)
    if (root / "meta/stats.json").is_file():
        _read_json(root / "meta/stats.json")

    from datasets.exceptions import DatasetGenerationError
    from lerobot.datasets import LeRobotDatasetMetadata

    try:
        return Dataset(root, LeRobotDatasetMetadata(f"local/{root.name}", root=root))
    except DatasetGenerationError as error:
        raise _unreadable(root / "meta/episodes", error, "copy the dataset again") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        root = path.parents[1]
        held = ", ".join(sorted(p.name for p in root.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{root} is not a LeRobotDataset: meta/info.json is missing, the folder holds {held}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it from the source") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; restore it from the source")
    return content


def _require_info(root: Path, info: dict[str, Any]) -> None:
    """Raise ValueError where LeRobot would fail on meta/info.json without saying how to mend it."""
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3."):
        raise ValueError(
            f"{root} is a LeRobotDataset {version}, expected v3.x; convert a v2.1 one with "
            "`python -m lerobot.scripts.convert_dataset_v21_to_v30 --push-to-hub=false "
            f"--repo-id=local/{root.name} --root={root}`"
        )
    needed = ("fps", "features", "total_episodes", "total_frames", "total_tasks")
    missing = [key for key in needed if key not in info]
    if missing:
        wrong = f"lacks {', '.join(missing)}"
    elif not isinstance(info["fps"], int | float) or info["fps"] <= 0:
        wrong = f"has fps {info['fps']!r}"
    elif vague := [n for n, f in info["features"].items() if not {"dtype", "shape"} <= set(f)]:
        wrong = f"gives feature {vague[0]} no dtype or no shape"
    else:
        return
    raise ValueError(f"{root / 'meta/info.json'} {wrong}; restore it from the source")


def _require_tables(root: Path) -> None:
    """The tables of meta/, without which LeRobot would turn to the Hub."""
    tables = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not tables:
        raise FileNotFoundError(f"{root / 'meta/episodes'} has no table; copy the dataset again")
    for path in tables:
        require_columns(path, EPISODE_COLUMNS)
    require_columns(root / "meta/tasks.parquet", ["task_index"])


def _unreadable(folder: Path, error: Exception, hint: str) -> ValueError:
    reason = str(error.__cause__ or error).partition("\n")[0]
    return ValueError(f"{folder} cannot be read ({reason}); {hint}")


def _decode(path: Path, times: list[float], fps: float) -> np.ndarray:
    """The pictures of a video at `times`, seconds, uint8 RGB [len(times), H, W, 3].

    By LeRobot with PyAV, in software; torchcodec fails at random with some ffmpeg builds.
    Raises FileNotFoundError if there is no such file, ValueError if it cannot be decoded or a
    picture is missing; the message names the file and the times.
    """
    from av.error import FFmpegError
    from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames

    if not path.is_file():
        raise FileNotFoundError(f"video {path} is missing")
    try:
        pictures = decode_video_frames(
            path, times, TOLERANCE / fps, backend="pyav", return_uint8=True
        )
    except FrameTimestampError as error:
        span = f"from {times[0]:.3f} to {times[-1]:.3f} s"
        raise ValueError(f"video {path} lacks some of the {len(times)} frames {span}") from error
    except (FFmpegError, IndexError) as error:  # IndexError: a file without a video stream
        raise ValueError(f"video {path} cannot be decoded ({error})") from error
    return pictures.permute(0, 2, 3, 1).contiguous().numpy()
