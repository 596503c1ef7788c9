"""Decode consecutive frames of a video file."""

from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError


def decode(path: Path, start: float, count: int, fps: float) -> np.ndarray:
    """`count` frames from `start` seconds on, uint8 RGB [count, H, W, 3].

    Seeks once, to the keyframe before `start`, and decodes from there, so a whole episode costs one
    seek. A frame belongs to the nearest multiple of 1/fps after `start`: timestamps in joined files
    drift by rounding. PyAV decodes in software; torchcodec fails at random with some ffmpeg builds.

    Raises FileNotFoundError if there is no such file, ValueError if it cannot be decoded or a frame
    is missing; the message names the file and the time.
    """
    if not path.is_file():
        raise FileNotFoundError(f"video {path} is missing")
    try:
        found = _frames_by_index(path, start, count, fps)
    except FFmpegError as error:
        raise ValueError(f"video {path} cannot be decoded ({error})") from error
    missing = [i for i in range(count) if i not in found]
    if missing:
        raise ValueError(
            f"video {path} lacks {len(missing)} of the {count} frames from {start:.3f} s on, "
            f"the first at {start + missing[0] / fps:.3f} s"
        )
    return np.stack([found[i] for i in range(count)])


def frame_count(path: Path) -> int:
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


def _frames_by_index(path: Path, start: float, count: int, fps: float) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"video {path} holds no video stream")
        stream = container.streams.video[0]
        tick = stream.time_base
        if tick is None:
            raise ValueError(f"video {path} has no time base")
        container.seek(max(0, round((start - 0.5 / fps) / tick)), stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            index = round((float(frame.pts * tick) - start) * fps)
            if 0 <= index < count:
                found.setdefault(index, frame.to_ndarray(format="rgb24"))
            if index >= count - 1:
                break
    return found
