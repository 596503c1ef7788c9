"""Images at the border of the model: any size in, uint8 [size, size, 3] out, floats in [-1, 1].

Two ways to fit a picture into the model's square, each as the owner of the weights does it:

    stretched   width and height scaled on their own, bicubic: PaliGemma as Hugging Face runs it
    letterbox   aspect ratio kept, bilinear, centred on black: π0 as openpi runs it
"""

import numpy as np
from PIL import Image


def prepare(image: np.ndarray | Image.Image, size: int, *, letterbox: bool = False) -> np.ndarray:
    """Fit one picture into a square.

    Args:
        image: uint8 RGB [H, W, 3], or a PIL image of any mode: greyscale and palettes become RGB,
            and an alpha channel is dropped, not blended.
        size: side of the square, pixels.
        letterbox: keep the aspect ratio and pad with black (openpi's `resize_with_pad`, bit by bit)
            instead of stretching (Hugging Face's `SiglipImageProcessorPil`, bit by bit). Both leave
            a picture of the right size as it is.

    Returns uint8 RGB [size, size, 3].

    Raises:
        ValueError: `size` is not positive, or an array is not uint8 [H, W, 3].
    """
    if size < 1:
        raise ValueError(f"the size of an image must be at least 1 pixel, got {size}")
    picture = to_pil(image)
    if picture.size == (size, size):
        return np.array(picture)
    fitted = _letterbox(picture, size) if letterbox else _stretch(picture, size)
    return np.array(fitted)


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


def _stretch(picture: Image.Image, size: int) -> Image.Image:
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def _letterbox(picture: Image.Image, size: int) -> Image.Image:
    ratio = max(picture.width, picture.height) / size
    width, height = max(1, int(picture.width / ratio)), max(1, int(picture.height / ratio))
    small = picture.resize((width, height), Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size), 0)
    square.paste(small, ((size - width) // 2, (size - height) // 2))
    return square


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
