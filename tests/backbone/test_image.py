"""Pictures of any size become the model's square, pixel for pixel as the references do it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbone.image import prepare, to_float

GOLDEN = Path(__file__).parents[1] / "golden" / "image_preprocessing"
SIZES = ["480x640", "300x200", "224x224"]


def golden(file: str, key: str) -> np.ndarray:
    with np.load(GOLDEN / file) as arrays:
        return arrays[key]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("letterbox", "reference"), [(True, "openpi_client_pil"), (False, "SiglipImageProcessorPil")]
)
def test_resizing_is_the_references_to_the_bit(size, letterbox, reference):
    image = golden("images.npz", size)
    out = prepare(image, 224, letterbox=letterbox)
    assert out.shape == (224, 224, 3)
    assert out.dtype == np.uint8
    assert np.array_equal(out[::2, ::2], golden("pil.npz", f"{reference}/{size}"))


def test_letterbox_centres_on_black_with_the_odd_pixel_at_the_end():
    wide = np.full((10, 40, 3), 200, np.uint8)
    out = prepare(wide, 21, letterbox=True)  # 21 wide, 5 high: 8 rows above and below
    assert (out[8:13] == 200).all()
    assert not out[:8].any()
    assert not out[13:].any()
    tall = prepare(np.full((40, 10, 3), 200, np.uint8), 22, letterbox=True)  # 22 high, 5 wide
    assert (tall[:, 8:13] == 200).all()
    assert not tall[:, :8].any()
    assert not tall[:, 13:].any()


def test_a_very_thin_picture_keeps_at_least_one_pixel():
    assert prepare(np.full((2, 1000, 3), 9, np.uint8), 32, letterbox=True).max() == 9


def test_a_picture_of_the_right_size_comes_back_unchanged_and_writable():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for letterbox in (False, True):
        out = prepare(image, 16, letterbox=letterbox)
        assert np.array_equal(out, image)
        out[0] = 0
    assert image[0].any(), "the input must not be changed"


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("RGBA", (10, 20, 30, 128), (10, 20, 30)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_pil_images_of_any_mode_become_rgb(mode, colour, expected):
    out = prepare(Image.new(mode, (7, 5), colour), 4)
    assert out.shape == (4, 4, 3)
    assert (out == expected).all()


def test_palette_images_take_their_palettes_colours():
    picture = Image.new("RGB", (6, 6), (255, 0, 0)).convert("P")
    assert (prepare(picture, 3) == (255, 0, 0)).all()


def test_floats_run_from_minus_one_to_one():
    out = to_float(np.array([0, 51, 255], np.uint8))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [-1, -0.6, 1], atol=1e-7)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"got float32; floats in \[0, 1\]"),
        (np.zeros((3, 4, 5), np.uint8), r"got shape \[3, 4, 5\]; channels come first"),
        (np.zeros((4, 4), np.uint8), r"got shape \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"got shape \[4, 4, 4\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one picture at a time"),
        (np.zeros((0, 4, 3), np.uint8), r"got shape \[0, 4, 3\]"),
        ("cup.png", "got str"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        prepare(image, 8)


def test_scaling_twice_and_empty_sizes_are_refused():
    with pytest.raises(ValueError, match=r"expected uint8 .* got float32; scale them once"):
        to_float(to_float(np.zeros((2, 2, 3), np.uint8)))
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        prepare(np.zeros((2, 2, 3), np.uint8), 0)
