"""Recorded frames as video files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def side_by_side(frames: Mapping[str, np.ndarray], height: int = 256) -> np.ndarray:
    """All cameras next to each other, in the order of `frames`: uint8 [T, height, W, 3].

    `frames` are uint8 [T, H, W, 3] per camera, with the same T. Pixels are repeated, not smoothed,
    so that small pictures show what the policy got.
    """
    if not frames:
        raise ValueError("expected the frames of at least one camera, got none")
    lengths = {name: len(shots) for name, shots in frames.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected as many frames of every camera, got {lengths}")
    return np.concatenate([_nearest(shots, height) for shots in frames.values()], axis=2)


def _nearest(shots: np.ndarray, height: int) -> np.ndarray:
    _, h, w, _ = shots.shape
    width = round(height * w / h)
    rows = (np.arange(height) * h) // height
    columns = (np.arange(width) * w) // width
    return shots[:, rows[:, None], columns]


def write_mp4(path: str | Path, frames: np.ndarray, fps: int = 10) -> Path:
    """Write uint8 RGB [T, H, W, 3] as an H.264 video and return its path.

    An odd height or width is made even by repeating the last row or column, as H.264 asks for.
    Raises ValueError for other arrays and ImportError where PyAV (`av`) is not installed.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(
            f"expected frames uint8 [T, H, W, 3] with T >= 1, got {frames.dtype}"
            f" {list(frames.shape)}"
        )
    import av
    import av.logging

    av.logging.set_level(av.logging.ERROR)  # the encoder tells its life on stderr otherwise
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"  # the only layout that all players and browsers show
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
