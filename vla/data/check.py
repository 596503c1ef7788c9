"""Look a LeRobotDataset v3 over for faults that training would not notice.

LeRobot 0.6 reads past most of these: a NaN goes into the batch, a deleted row shifts every later
action chunk, another fps in info.json changes their spacing, all without a word. So the metadata
comes through LeRobot, as in training, and the rows straight from the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from vla.data.dataset import ACTION, BOOKKEEPING, STATE, Dataset, open_dataset
from vla.data.parquet import read_column

MOST_PER_KIND = 20  # faults of one kind that are listed; a broken recorder makes thousands
TOLERANCE = 0.1  # of a frame, between a timestamp and frame_index / fps


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where (episode and frame, or file), what, and what to do."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


def check(source: str | Path | Dataset, *, decode: bool = False) -> list[Fault]:
    """Every fault found in a dataset, in the order in which they should be mended.

    Reads all metadata and all rows, and the header of each video; with `decode`, every picture too.
    What cannot be found: cameras that were swapped, pictures that decode to something else.

    Raises FileNotFoundError or ValueError, as `open_dataset`, if the folder is no such dataset.
    """
    dataset = source if isinstance(source, Dataset) else open_dataset(source)
    structure = list(_counts(dataset))
    if dataset.episodes:
        structure += _columns(dataset)
    if structure:
        return structure  # the other checks take these for granted
    checks: list[Callable[[Dataset], Iterator[Fault]]] = [
        _index,
        _episode_rows,
        _timestamps,
        _tasks,
        _finite,
        _videos,
    ]
    if decode:
        checks.append(_pictures)
    return [fault for kind in checks for fault in _first(kind(dataset))]


def check_or_raise(dataset: Dataset) -> None:
    """Raise ValueError with the first fault, and how many more there are."""
    faults = check(dataset)
    if faults:
        more = f" (and {len(faults) - 1} more: vla check {dataset.root})" if len(faults) > 1 else ""
        raise ValueError(f"{dataset.root}: {faults[0]}{more}")


def _first(faults: Iterator[Fault]) -> list[Fault]:
    listed = []
    for fault in faults:
        if len(listed) == MOST_PER_KIND:
            return [*listed, Fault("…", "more of the same follow", "mend these first")]
        listed.append(fault)
    return listed


def _counts(dataset: Dataset) -> Iterator[Fault]:
    info, lengths = "meta/info.json", dataset.lengths
    if not lengths:
        yield Fault("meta/episodes", "there are no episodes", "collect some")
        return
    numbers = [int(episode["episode_index"]) for episode in dataset.episodes]
    twice = [n for n, times in Counter(numbers).items() if times > 1]
    if twice:
        fix = "the recording did not finish; collect again"
        yield Fault(f"episode {twice[0]}", "is listed twice in meta/episodes", fix)
    elif numbers != sorted(numbers):
        fix = "sort its rows by episode_index"
        yield Fault("meta/episodes", "lists the episodes out of order", fix)
    elif numbers != list(range(len(numbers))):
        gap = next(i for i, n in enumerate(numbers) if i != n)
        yield Fault(f"episode {gap}", "is missing from meta/episodes", "copy the dataset again")
    for name, found in (("total_episodes", len(lengths)), ("total_frames", sum(lengths))):
        told = getattr(dataset.meta.info, name)
        if told != found:
            what = f"{name} is {told}, meta/episodes has {found}"
            yield Fault(info, what, f"set {name} to {found} if no file is missing")
    for episode, length in enumerate(lengths):
        if length < 1:
            yield Fault(f"episode {episode}", f"has {length} frames", "drop it from the dataset")


def _columns(dataset: Dataset) -> Iterator[Fault]:
    """Every file can be read and every feature is there with the width that info.json says."""
    for path in sorted((dataset.root / "data").glob("*/*.parquet")):
        if path not in dataset.data_files:
            what = f"{path} belongs to no episode, but LeRobot reads every file there"
            yield Fault("data", what, "move it away")
    for name in (STATE, ACTION):
        if name not in dataset.features:
            held = ", ".join(dataset.features)
            yield Fault(
                "meta/info.json", f"has no feature {name}, only {held}", "rename yours to it"
            )
    for name, feature in dataset.features.items():
        if feature["dtype"] in ("video", "image", "string", "language") or name in BOOKKEEPING:
            continue
        try:
            values = _column(dataset, name)
        except (ValueError, OSError) as error:
            yield _from_error("data", dataset, error)
            continue
        if len(values) and values[0].size != int(np.prod(feature["shape"])):
            shape = list(feature["shape"])
            what = f"{name} has {values[0].size} numbers per frame, info.json says {shape}"
            yield Fault("data", what, "set the shape in meta/info.json to what the data holds")


def _column(dataset: Dataset, name: str) -> np.ndarray:
    parts = [read_column(path, name) for path in dataset.data_files]
    for path, part in zip(dataset.data_files, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(
                f"{path}: {name} has another width than in {dataset.data_files[0]}; "
                "record those episodes again"
            )
    return np.concatenate(parts)


def _index(dataset: Dataset) -> Iterator[Fault]:
    """`index` counts 0, 1, 2, …: a row that is missing would shift every later action chunk."""
    index = _column(dataset, "index")
    total = sum(dataset.lengths)
    wrong = np.flatnonzero(index != np.arange(len(index)))
    if len(wrong):
        row = int(wrong[0])
        what = f"index is {index[row]} where {row} was expected: rows are missing or out of order"
        yield Fault(_place(dataset, row), what, "copy the data files again or drop that episode")
    elif len(index) != total:
        what = f"there are {len(index)} rows, meta/episodes counts {total} frames"
        yield Fault("data", what, "copy the data files again")


def _episode_rows(dataset: Dataset) -> Iterator[Fault]:
    """meta/episodes and the rows agree on where each episode begins and ends."""
    numbers, frames = _column(dataset, "episode_index"), _column(dataset, "frame_index")
    expected = 0
    for episode, (start, length) in enumerate(zip(dataset.starts, dataset.lengths, strict=True)):
        where, fix = f"episode {episode}", "copy the dataset again or drop the episode"
        if start != expected:
            yield Fault(where, f"begins at row {start}, expected {expected}", fix)
        if int(dataset.episodes[episode]["dataset_to_index"]) != start + length:
            end = dataset.episodes[episode]["dataset_to_index"]
            yield Fault(where, f"ends at row {end}, expected {start + length}", fix)
        expected += length
        rows = slice(start, start + length)
        if (numbers[rows] != episode).any():
            other = numbers[rows][numbers[rows] != episode][0]
            yield Fault(where, f"contains rows of episode {other}", fix)
        wrong = np.flatnonzero(frames[rows] != np.arange(len(frames[rows])))
        if len(wrong):
            frame = int(wrong[0])
            what = f"frame_index is {frames[rows][frame]}"
            yield Fault(f"{where} frame {frame}", what, fix)


def _timestamps(dataset: Dataset) -> Iterator[Fault]:
    times, frames = _column(dataset, "timestamp"), _column(dataset, "frame_index")
    late = np.abs(times - frames / dataset.fps) * dataset.fps
    for row in np.flatnonzero(~(late <= TOLERANCE)):
        what = (
            f"timestamp is {times[row]:.4f} s, frame {frames[row]} at {dataset.fps} fps is at "
            f"{frames[row] / dataset.fps:.4f} s"
        )
        yield Fault(
            _place(dataset, row), what, "set fps in meta/info.json to that of the recording"
        )


def _tasks(dataset: Dataset) -> Iterator[Fault]:
    tasks = _column(dataset, "task_index")
    for row in np.flatnonzero(~np.isin(tasks, list(dataset.tasks))):
        what = f"task_index is {tasks[row]}, meta/tasks.parquet has {len(dataset.tasks)} tasks"
        yield Fault(_place(dataset, row), what, "add the instruction to meta/tasks.parquet")


def _finite(dataset: Dataset) -> Iterator[Fault]:
    for name, feature in dataset.features.items():
        if not str(feature["dtype"]).startswith("float") or name in BOOKKEEPING:
            continue
        values = _column(dataset, name)
        values = values.reshape(len(values), -1)
        for row, dim in np.argwhere(~np.isfinite(values)):
            what = f"{name}[{dim}] is {values[row, dim]}"
            yield Fault(_place(dataset, int(row)), what, "drop the episode or record it again")


def _videos(dataset: Dataset) -> Iterator[Fault]:
    """Every video is there, opens, and holds as many frames as its episodes need."""
    for camera in dataset.cameras:
        if dataset.features[dataset.feature_name(camera)]["dtype"] != "video":
            continue
        needed: Counter[Path] = Counter()
        for episode, length in enumerate(dataset.lengths):
            try:
                needed[dataset.video_file(camera, episode)] += length
            except ValueError as error:
                yield _from_error(f"episode {episode}", dataset, error)
                continue
            yield from _video_span(dataset, camera, episode)
        for path, frames in needed.items():
            yield from _video_file(path, camera, frames)


def _video_span(dataset: Dataset, camera: str, episode: int) -> Iterator[Fault]:
    row, key = dataset.episodes[episode], f"videos/{dataset.feature_name(camera)}"
    span = float(row[f"{key}/to_timestamp"]) - float(row[f"{key}/from_timestamp"])
    if abs(span * dataset.fps - dataset.lengths[episode]) > 0.5:
        what = (
            f"camera {camera} spans {span:.3f} s, {dataset.lengths[episode]} frames at "
            f"{dataset.fps} fps take {dataset.lengths[episode] / dataset.fps:.3f} s"
        )
        yield Fault(
            f"episode {episode}", what, "set fps in meta/info.json to that of the recording"
        )


def _video_file(path: Path, camera: str, needed: int) -> Iterator[Fault]:
    if not path.is_file():
        yield Fault(f"camera {camera}", f"video {path} is missing", "copy the dataset again")
        return
    try:
        found = _frame_count(path)
    except ValueError as error:
        yield Fault(f"camera {camera}", str(error), "copy the file again")
        return
    if 0 < found < needed:
        what = f"video {path} has {found} frames, its episodes need {needed}"
        yield Fault(f"camera {camera}", what, "copy the file again")


def _frame_count(path: Path) -> int:
    """Frames that the file's header promises; 0 where it does not say.

    Raises ValueError if the file cannot be opened or holds no video.
    """
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise ValueError(f"video {path} cannot be opened ({error})") from error
    frames = [stream.frames for stream in container.streams.video]
    container.close()
    if not frames:
        raise ValueError(f"video {path} holds no video stream")
    return frames[0]


def _pictures(dataset: Dataset) -> Iterator[Fault]:
    for camera in dataset.cameras:
        height, width = dataset.features[dataset.feature_name(camera)]["shape"][:2]
        for episode in range(len(dataset.episodes)):
            try:
                found = dataset.frames(camera, episode).shape[1:3]
            except (ValueError, OSError) as error:
                yield _from_error(f"episode {episode}", dataset, error)
                continue
            if found != (height, width):
                what = f"camera {camera} shows {found[0]}×{found[1]}, info.json {height}×{width}"
                yield Fault(f"episode {episode}", what, "set the shape in meta/info.json")


def _from_error(where: str, dataset: Dataset, error: Exception) -> Fault:
    """The fault in an error of `vla.data.dataset`, whose message ends in what to do."""
    what, _, fix = str(error).removeprefix(f"{dataset.root}: ").rpartition("; ")
    return Fault(where, what.removeprefix(f"{where}, "), fix)


def _place(dataset: Dataset, row: int) -> str:
    """`episode 3 frame 7`, from the row and the episodes' lengths."""
    ends = np.cumsum(dataset.lengths)
    episode = min(int(np.searchsorted(ends, row, side="right")), len(ends) - 1)
    return f"episode {episode} frame {row - (int(ends[episode]) - dataset.lengths[episode])}"
