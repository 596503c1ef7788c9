"""A LeRobotDataset v3 folder, read with pyarrow and PyAV alone.

    meta/info.json                        fps, features, path templates
    meta/tasks.parquet                    instruction ↔ task_index
    meta/episodes/chunk-*/file-*.parquet  one row per episode: length, files, start in each video
    data/chunk-*/file-*.parquet           one row per frame: state, action, timestamp, indices
    videos/<camera>/chunk-*/file-*.mp4    many episodes per file; or images inside the data files

Reading the folder directly keeps `import lerobot` (seconds) out of training, never asks the
network, and lets a broken dataset be described rather than fail somewhere inside. Items equal those
of `LeRobotDataset(..., video_backend="pyav")`; a test holds the two against each other.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vla.data.video import decode

IMAGES = "observation.images."
STATE = "observation.state"
ACTION = "action"
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
CAMERA_TYPES = ("video", "image")


@dataclass(frozen=True)
class Dataset:
    """What the folder at `root` says about itself; frames and columns are read when asked for.

    info: meta/info.json. episodes: one dict per episode, in order. tasks: instructions by
    task_index.
    """

    root: Path
    info: dict[str, Any]
    episodes: list[dict[str, Any]]
    tasks: dict[int, str]

    @property
    def fps(self) -> float:
        return self.info["fps"]

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        return self.info["features"]

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras; `observation.images.` is left out where a feature has it."""
        return [
            name.removeprefix(IMAGES)
            for name, feature in self.features.items()
            if feature["dtype"] in CAMERA_TYPES and not _is_depth(feature)
        ]

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
        """The files of frames, in the order of their rows."""
        keys = [(e["data/chunk_index"], e["data/file_index"]) for e in self.episodes]
        template = self.info["data_path"]
        return [
            self.inside(template.format(chunk_index=chunk, file_index=file))
            for chunk, file in sorted(set(keys))
        ]

    def inside(self, relative: str) -> Path:
        """`root / relative`. Raises ValueError if that leads out of the dataset's folder."""
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(
                f"{self.root}: meta/info.json leads to {relative}, outside the dataset; "
                "restore LeRobot's own data_path and video_path"
            )
        return path

    def feature_name(self, camera: str) -> str:
        """The feature that holds a camera's pictures."""
        return camera if camera in self.features else IMAGES + camera

    def table(self, columns: list[str]) -> pa.Table:
        """Columns of all frames, in the order of the files' rows.

        Raises ValueError if a file is damaged or lacks a column, FileNotFoundError if it is gone.
        """
        return pa.concat_tables([_read_columns(path, columns) for path in self.data_files])

    def column(self, name: str) -> np.ndarray:
        """One numeric column: [frames] of a scalar feature, [frames, D] of a vector.

        Raises ValueError if rows differ in length, and as `table` does.
        """
        return _to_numpy(self.table([name]).column(name), f"{self.root}: {name}")

    def video_file(self, camera: str, episode: int) -> Path:
        """The video that holds an episode's pictures of a camera.

        Raises ValueError if the episode has none.
        """
        key = self.feature_name(camera)
        row = self.episodes[episode]
        chunk, file = (row.get(f"videos/{key}/{name}_index") for name in ("chunk", "file"))
        if chunk is None or file is None:
            raise ValueError(
                f"{self.root}: camera {camera} is declared but episode {episode} has no video of "
                "it; record it again or drop the camera from meta/info.json"
            )
        path = self.info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        return self.inside(path)

    def frames(
        self, camera: str, episode: int, first: int = 0, count: int | None = None
    ) -> np.ndarray:
        """Consecutive pictures of an episode, uint8 RGB [count, H, W, 3].

        first: frame of the episode to begin with. count: how many; None: to the episode's end.
        Raises ValueError, naming episode, camera and file, if the video does not hold them.
        """
        count = self.lengths[episode] - first if count is None else count
        if self.features[self.feature_name(camera)]["dtype"] == "image":
            return self._stored_images(camera, self.starts[episode] + first, count)
        path = self.video_file(camera, episode)
        start = float(self.episodes[episode][f"videos/{self.feature_name(camera)}/from_timestamp"])
        try:
            return decode(path, start + first / self.fps, count, self.fps)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{self.root}: episode {episode}, camera {camera}: {error}; "
                "copy the file again or record the episode again"
            ) from error

    def _stored_images(self, camera: str, row: int, count: int) -> np.ndarray:
        key, files = self.feature_name(camera), []
        for path, group, first, rows in self._row_groups:
            if first < row + count and row < first + rows:
                column = pq.ParquetFile(path).read_row_group(group, columns=[key]).column(key)
                files += column[max(0, row - first) : row + count - first].to_pylist()
        return np.stack([_decode_image(file["bytes"]) for file in files])

    @cached_property
    def _row_groups(self) -> list[tuple[Path, int, int, int]]:
        """Each row group, LeRobot's unit of writing: its file, number, first row, and rows."""
        groups, first = [], 0
        for path in self.data_files:
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                groups.append((path, group, first, rows))
                first += rows
        return groups


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
    info = _read_info(root)
    tasks = _read_table(root / "meta/tasks.parquet").to_pylist()
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    rows = [row for file in files for row in _read_table(file).to_pylist()]
    rows.sort(key=lambda row: row["episode_index"])
    # pandas keeps the instruction as the table's index, under its own name or a made-up one
    named = {int(t["task_index"]): t.get("task", t.get("__index_level_0__")) for t in tasks}
    return Dataset(root, info, rows, named)


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta/info.json"
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in root.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{root} is not a LeRobotDataset: meta/info.json is missing, the folder holds {held}"
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it from the source") from error
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3."):
        raise ValueError(
            f"{root} is a LeRobotDataset {version}, expected v3.x; convert a v2.1 one with "
            "`python -m lerobot.scripts.convert_dataset_v21_to_v30 --push-to-hub=false "
            f"--repo-id=local/{root.name} --root={root}`"
        )
    missing = [key for key in ("fps", "features", "data_path") if key not in info]
    if missing or not isinstance(info["fps"], int | float) or info["fps"] <= 0:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has fps {info['fps']!r}"
        raise ValueError(f"{path} {wrong}; restore it from the source")
    return info


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the dataset again")
    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a whole parquet file ({error}); copy it again") from error


def _read_columns(path: Path, columns: list[str]) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the dataset again")
    try:
        held = pq.read_schema(path).names
        missing = [name for name in columns if name not in held]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]}, only {', '.join(held)}; copy it again"
            )
        table = pq.read_table(path, columns=columns, memory_map=True)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a whole parquet file ({error}); copy it again") from error
    return table.replace_schema_metadata(None)


def _to_numpy(column: pa.ChunkedArray, name: str) -> np.ndarray:
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ValueError(f"{name} has no value in row {row}; record that episode again")
    if not pa.types.is_nested(column.type):
        return column.to_numpy()
    values = [_list_to_numpy(chunk, name) for chunk in column.chunks if len(chunk)]
    return np.concatenate(values) if values else np.zeros((0, 0), np.float32)


def _list_to_numpy(array: pa.Array, name: str) -> np.ndarray:
    lengths = np.asarray(array.value_lengths()) if hasattr(array, "value_lengths") else None
    if lengths is not None and len(set(lengths.tolist())) > 1:
        usual = int(np.median(lengths))
        row = int(np.flatnonzero(lengths != usual)[0])
        raise ValueError(
            f"{name} has {lengths[row]} values in row {row} where others have {usual}; "
            "record that episode again"
        )
    flat = array.flatten()
    if pa.types.is_nested(flat.type):
        return np.array(array.to_pylist())
    return flat.to_numpy(zero_copy_only=False).reshape(len(array), -1)


def _decode_image(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _is_depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
