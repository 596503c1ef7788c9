"""Images at the border of the model: any size in, the model's square out.

Each owner of weights fits a picture into the square in a way of its own (`Numerics.resize`):

    pil       letterbox, bilinear, antialiased, uint8     openpi's client and data transforms
    jax       letterbox, bilinear, antialiased, float32   openpi's JAX model
    torch     letterbox, bilinear, float32                openpi's PyTorch model, LeRobot
    bicubic   stretched, bicubic, antialiased, uint8      PaliGemma as Hugging Face runs it
    tf        stretched, bilinear, antialiased, uint8     PaliGemma as big_vision runs it

A letterbox keeps the aspect ratio and pads with black, the odd row or column at the bottom or
right; stretching scales width and height on their own.
"""

import math

import numpy as np
from PIL import Image

from backbone.numerics import Resize


def prepare(image: np.ndarray | Image.Image, size: int, resize: Resize = "pil") -> np.ndarray:
    """Fit one picture into a square.

    Args:
        image: uint8 RGB [H, W, 3], or a PIL image of any mode: greyscale and palettes become RGB,
            and an alpha channel is dropped, not blended.
        size: side of the square, pixels.
        resize: whose way; see the top of this file. All of them leave the pixels of a picture that
            has the right size already as they are.

    Returns RGB [size, size, 3]: uint8, or float32 in [-1, 1] where the reference resizes in float
    ("jax" and "torch"). "pil", "bicubic" and "tf" are the reference's to the bit, "jax" and "torch"
    within 1e-6.

    Raises:
        ValueError: `size` is not positive, or an array is not uint8 [H, W, 3].
    """
    if size < 1:
        raise ValueError(f"the size of an image must be at least 1 pixel, got {size}")
    picture = to_pil(image)
    match resize:
        case "pil":
            return _pil_letterbox(picture, size)
        case "bicubic":
            return np.array(picture.resize((size, size), Image.Resampling.BICUBIC))
        case "tf":
            pixels = np.array(picture).astype(np.float32)
            return resample(pixels, size, size, antialias=True).clip(0, 255).astype(np.uint8)
        case "jax" | "torch":
            pixels = to_float(np.array(picture))
            return letterbox(pixels, size, antialias=resize == "jax")


def letterbox(image: np.ndarray, size: int, *, antialias: bool) -> np.ndarray:
    """The model-side letterbox of openpi, `resize_with_pad` (antialiased) and
    `resize_with_pad_torch` (not).

    image: uint8 [H, W, 3], or float32 [H, W, 3] in [-1, 1]. Returns the same dtype [size, size, 3],
    padded with 0, or with -1. uint8 is rounded.
    """
    wide = np.asarray(image, np.float32)
    height, width = _inner(image.shape[0], image.shape[1], size)
    small = resample(wide, height, width, antialias=antialias)
    small = small.round().clip(0, 255) if image.dtype == np.uint8 else small.clip(-1, 1)
    square = np.full((size, size, 3), 0 if image.dtype == np.uint8 else -1, image.dtype)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = small
    return square


def resample(image: np.ndarray, height: int, width: int, *, antialias: bool) -> np.ndarray:
    """Bilinear resizing with pixel centres at half integers.

    image: float32 [H, W, 3]. Returns float32 [height, width, 3].
    antialias: widen the triangle when shrinking, as `jax.image.resize` and TensorFlow's
    `ScaleAndTranslate` do; else two taps per axis, as `F.interpolate(align_corners=False)`.
    """
    if image.shape[:2] == (height, width):
        return image
    rows = _resample_rows(image, height, antialias)
    return _resample_rows(rows.swapaxes(0, 1), width, antialias).swapaxes(0, 1)


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 [...] to float32 of the same shape in [-1, 1], x / 127.5 − 1, as SigLIP expects.

    Raises ValueError for another dtype: floats may be scaled already, and scaling twice is silent.
    """
    if image.dtype != np.uint8:
        raise ValueError(
            f"expected uint8 pixels in 0..255, got {image.dtype}; scale them once only"
        )
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_pil(image: np.ndarray | Image.Image) -> Image.Image:
    """An RGB PIL image of a uint8 [H, W, 3] array or of a PIL image of any mode."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    _check_array(image)
    return Image.fromarray(image)


def _pil_letterbox(picture: Image.Image, size: int) -> np.ndarray:
    height, width = _inner(picture.height, picture.width, size)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    small = picture.resize((width, height), Image.Resampling.BILINEAR)
    square[top : top + height, left : left + width] = np.array(small)
    return square


def _inner(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of the picture inside its letterbox; at least one pixel each, where openpi
    would fail."""
    ratio = max(width / size, height / size)
    return max(1, int(height / ratio)), max(1, int(width / ratio))


def _resample_rows(image: np.ndarray, out: int, antialias: bool) -> np.ndarray:
    index, weight = _taps(image.shape[0], out, antialias)
    result = np.zeros((out, *image.shape[1:]), np.float32)
    for tap in range(index.shape[1]):
        result += weight[:, tap, None, None] * image[index[:, tap]]
    return result


def _taps(length: int, out: int, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which inputs an output reads, int64 [out, K], and their weights, float32 [out, K].

    Weights fall off linearly from the output's centre and sum to 1; taps beyond the border weigh 0.
    Reciprocals are multiplied with, as TensorFlow does, so that what it cuts off is cut off here.
    """
    one, half = np.float32(1), np.float32(0.5)
    step = np.float32(length / out)
    spread = max(step, one) if antialias else one
    centre = (np.arange(out, dtype=np.float32) + half) * step
    first = np.ceil(centre - spread - half).astype(np.int64)
    index = first[:, None] + np.arange(2 * math.ceil(spread) + 1)
    offset = index.astype(np.float32) + half - centre[:, None]
    weight = np.maximum(0, one - np.abs(offset * (one / spread)))
    weight[(index < 0) | (index >= length)] = 0
    return index.clip(0, length - 1), weight * (one / weight.sum(axis=1, keepdims=True))


def _check_array(image: np.ndarray) -> None:
    wanted = "expected a uint8 RGB array [height, width, 3] or a PIL image"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{wanted}, got {type(image).__name__}; convert it with np.asarray(...)")
    hint = "give one picture at a time" if image.ndim == 4 else "convert it first"
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        hint = "channels come first here; use image.transpose(1, 2, 0)"
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{wanted}, got shape {list(image.shape)}; {hint}")
    if image.dtype != np.uint8:
        raise ValueError(
            f"{wanted}, got {image.dtype}; floats in [0, 1] become (255 * image).astype(np.uint8)"
        )
