"""Random preprocessing of PaliGemma's pretraining: another resize, a re-encoding, a slight crop.

From arXiv 2407.07726 and big_vision `pp/proj/paligemma/robustness.py`: the ten resizes and JPEG's
qualities. How often, and how slight the crop, was not published: the defaults are ours. Transfers
gained nothing from any of it, and the paper leaves it out there.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vla.data.resampling import METHODS, Method, resize

QUALITIES = (75, 95)
ATTEMPTS = 100  # TensorFlow's sample_distorted_bounding_box


@dataclass(frozen=True)
class Window:
    """A piece of a picture, pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """pixels: [H, W, …]. Returns [height, width, …]."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]

    def moved(
        self, box: tuple[float, float, float, float]
    ) -> tuple[float, float, float, float] | None:
        """A box (x0, y0, x1, y1) of the picture as the piece shows it, clipped; None if less than a
        pixel of it is to be seen."""
        x0, x1 = (min(max(x - self.left, 0.0), self.width) for x in (box[0], box[2]))
        y0, y1 = (min(max(y - self.top, 0.0), self.height) for y in (box[1], box[3]))
        return (x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None


@dataclass(frozen=True)
class Augment:
    """crop: share of pictures that are cropped, to `area` to 1 of their area. aspect: width /
    height of the crop, least and most. jpeg: share that is re-encoded. resize: with one of ten
    methods, else bilinearly with antialiasing.

    `window` says where a picture is cropped, so that boxes and masks can follow; calling it
    re-encodes and resizes the piece.
    """

    crop: float = 0.5
    area: float = 0.9
    aspect: tuple[float, float] = (0.75, 1.33)
    jpeg: float = 0.5
    resize: bool = True

    def __post_init__(self):
        for name in ("crop", "area", "jpeg"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"augment.{name} is {getattr(self, name)}; it is a share in [0, 1]"
                )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"augment.aspect is {self.aspect}; give the least and the most")

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """The piece of a picture of so many pixels that is looked at, often all of it."""
        if rng.random() < self.crop:
            return inception_window(height, width, rng, self.area, self.aspect)
        return Window(0, 0, height, width)

    def __call__(self, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """image: uint8 RGB [H, W, 3]. Returns uint8 RGB [size, size, 3]."""
        if rng.random() < self.jpeg:
            image = random_jpeg(image, rng)
        return random_resize(image, size, rng) if self.resize else _square(image, size)


def random_resize(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """To size × size by one of five methods, with or without antialiasing, all ten as likely.

    As in big_vision, values are clipped to 0..255 and cut to whole numbers.
    """
    method: Method = METHODS[rng.integers(len(METHODS))]
    antialias = bool(rng.integers(2))
    return _square(image, size, method, antialias)


def random_jpeg(
    image: np.ndarray, rng: np.random.Generator, qualities: tuple[int, int] = QUALITIES
) -> np.ndarray:
    """Encoded as JPEG with a quality of 75 to 95, all as likely, and decoded.

    big_vision draws the method of the cosine transform too, which Pillow doesn't let one choose.
    """
    encoded = io.BytesIO()
    quality = int(rng.integers(qualities[0], qualities[1] + 1))
    Image.fromarray(image).save(encoded, "JPEG", quality=quality)
    with Image.open(encoded) as decoded:
        return np.asarray(decoded.convert("RGB"))


def inception_window(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: float = 0.9,
    aspect: tuple[float, float] = (0.75, 1.33),
) -> Window:
    """A random piece of at least `area` of a picture, its width / height within `aspect`.

    As TensorFlow draws them: an aspect, an area that it allows within the picture, a place; where
    `ATTEMPTS` draws give none, the whole picture.
    """
    for _ in range(ATTEMPTS):
        ratio, share = rng.uniform(*aspect), rng.uniform(area, 1.0)
        wanted = share * height * width
        h, w = round((wanted / ratio) ** 0.5), round((wanted * ratio) ** 0.5)
        if 1 <= h <= height and 1 <= w <= width and h * w >= area * height * width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return Window(int(top), int(left), h, w)
    return Window(0, 0, height, width)


def _square(
    image: np.ndarray, size: int, method: Method = "bilinear", antialias: bool = True
) -> np.ndarray:
    return resize(image, size, size, method, antialias).clip(0, 255).astype(np.uint8)
