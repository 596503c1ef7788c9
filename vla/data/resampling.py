"""Five ways of resizing, each with and without antialiasing: those that TensorFlow's users know.

    bilinear    triangle, radius 1               lanczos3        sinc(x)·sinc(x/3), radius 3
    bicubic     Keys' with a = −1/2, radius 2    mitchellcubic   Mitchell's B = C = 1/3, radius 2
    area        the mean over the piece of the picture that an output pixel covers

Pixel centres lie at half integers; antialiasing widens the kernel when shrinking; weights sum to 1,
those beyond the border are left out. Sources: tf.image.resize, `scale_and_translate_op.cc` and
`resize_area_op.cc`, where `area` has no antialiasing either.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

__all__ = ["METHODS", "Method", "resize", "weights"]

type Method = Literal["bilinear", "bicubic", "lanczos3", "area", "mitchellcubic"]
METHODS: tuple[Method, ...] = ("bilinear", "bicubic", "lanczos3", "area", "mitchellcubic")
RADIUS = {"bilinear": 1.0, "bicubic": 2.0, "lanczos3": 3.0, "mitchellcubic": 2.0}


def resize(
    image: np.ndarray, height: int, width: int, method: Method = "bilinear", antialias: bool = True
) -> np.ndarray:
    """image: uint8 or float [H, W, C]. Returns float32 [height, width, C], which may overshoot the
    input's range where the kernel is negative in places.
    """
    wide = np.asarray(image, np.float32)
    rows = np.tensordot(weights(wide.shape[0], height, method, antialias), wide, 1)
    columns = np.tensordot(weights(wide.shape[1], width, method, antialias), rows, ([1], [1]))
    return columns.swapaxes(0, 1)


@lru_cache(maxsize=64)
def weights(length: int, out: int, method: Method, antialias: bool = True) -> np.ndarray:
    """How much each input counts in each output, float32 [out, length]; rows sum to 1."""
    step = length / out
    if method == "area":
        edges = np.arange(out + 1) * step
        low, high = edges[:-1, None], edges[1:, None]
        cells = np.arange(length)
        found = np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0, None)
    else:
        spread = max(step, 1.0) if antialias else 1.0
        centres = (np.arange(out) + 0.5) * step
        offsets = (np.arange(length) + 0.5 - centres[:, None]) / spread
        found = np.where(np.abs(offsets) < RADIUS[method], _kernel(np.abs(offsets), method), 0.0)
    return (found / found.sum(axis=1, keepdims=True)).astype(np.float32)


def _kernel(x: np.ndarray, method: Method) -> np.ndarray:
    """The kernel at distances x ≥ 0; values beyond its radius mean nothing."""
    match method:
        case "bilinear":
            return 1 - x
        case "bicubic":
            near = (1.5 * x - 2.5) * x**2 + 1
            return np.where(x < 1, near, ((-0.5 * x + 2.5) * x - 4) * x + 2)
        case "lanczos3":
            return np.sinc(x) * np.sinc(x / 3)
        case _:
            near = (7 / 6 * x - 2) * x**2 + 8 / 9
            return np.where(x < 1, near, ((-7 / 18 * x + 2) * x - 10 / 3) * x + 16 / 9)
