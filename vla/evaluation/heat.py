"""Heat overlays: how much of something each patch of an image has, laid over the image."""

import numpy as np
from PIL import Image

# Dark to bright with steadily rising lightness, so that it reads in grey and with colour blindness.
STOPS = np.array(
    [[8, 6, 40], [72, 20, 110], [150, 40, 110], [220, 75, 60], [250, 155, 40], [252, 244, 160]],
    dtype=float,
)

PEAK = 3.0


def colours(values: np.ndarray) -> np.ndarray:
    """`values` float [...] in [0, 1] → uint8 [..., 3]; values outside are clipped."""
    place = np.clip(values, 0.0, 1.0) * (len(STOPS) - 1)
    below = np.minimum(place.astype(int), len(STOPS) - 2)
    part = (place - below)[..., None]
    return np.rint(STOPS[below] * (1 - part) + STOPS[below + 1] * part).astype(np.uint8)


def colour_scale(width: int = 128) -> np.ndarray:
    """uint8 [1, width, 3] from the colour of 0 to that of 1, for a legend."""
    return colours(np.linspace(0, 1, width))[None]


def overlay(image: np.ndarray, heat: np.ndarray, width: int) -> np.ndarray:
    """`heat` over `image`, enlarged to `width` pixels across: uint8 [H', width, 3].

    image: uint8 [H, W, 3]; heat: float [h, w], not negative, one value per patch, of any scale. The
    largest becomes the brightest if it is at least `PEAK` times the mean; so even heat stays dim.
    The picture shows through in grey where there is little heat.
    """
    height = round(width * image.shape[0] / image.shape[1])
    top = max(float(heat.max()), PEAK * float(heat.mean()))
    scaled = (heat / top if top > 0 else heat).astype(np.float32)
    smooth = np.array(Image.fromarray(scaled).resize((width, height), Image.Resampling.BICUBIC))
    smooth = np.clip(smooth, 0.0, 1.0)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
    grey = 0.75 * np.array(picture.convert("L"), dtype=float)[..., None].repeat(3, axis=2)
    strength = (0.25 + 0.6 * smooth)[..., None]
    mixed = (1 - strength) * grey + strength * colours(smooth)
    return np.rint(mixed).astype(np.uint8)
