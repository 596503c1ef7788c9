"""Pictures of any size become the model's square, pixel for pixel as the references do it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbone.image import letterbox, prepare, resample, to_float

GOLDEN = Path(__file__).parents[1] / "golden" / "image_preprocessing"
SIZES = ["480x640", "300x200", "224x224"]


def golden(file: str, key: str) -> np.ndarray:
    with np.load(GOLDEN / file) as arrays:
        return arrays[key]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("resize", "file", "reference"),
    [
        ("pil", "openpi.npz", "openpi_client_pil"),
        ("bicubic", "hf.npz", "SiglipImageProcessorPil"),
        ("tf", "big_vision_tf.npz", "bv_bilinear_aa1_uint8"),
    ],
)
def test_uint8_resizing_is_the_references_to_the_bit(size, resize, file, reference):
    out = prepare(golden("images.npz", size), 224, resize)
    assert out.shape == (224, 224, 3)
    assert out.dtype == np.uint8
    assert np.array_equal(out[::2, ::2], golden(file, f"{reference}/{size}"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("resize", "file", "reference"),
    [
        ("jax", "openpi.npz", "openpi_jax_float32"),
        ("torch", "openpi.npz", "openpi_torch_float32"),
        ("torch", "hf.npz", "lerobot_resize_with_pad_torch"),
    ],
)
def test_float_resizing_is_the_references_up_to_rounding(size, resize, file, reference):
    out = prepare(golden("images.npz", size), 224, resize)
    wanted = golden(file, f"{reference}/{size}")
    if "lerobot" in reference:
        wanted = wanted * 2 - 1  # LeRobot resizes in [0, 1] and scales afterwards
    assert out.shape == (224, 224, 3)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[::4, ::4], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_openpis_jax_letterbox_of_uint8_is_rounded(size):
    out = letterbox(golden("images.npz", size), 224, antialias=True)
    wanted = golden("openpi.npz", f"openpi_jax_uint8/{size}").astype(int)
    assert out.dtype == np.uint8
    assert np.abs(out[::2, ::2] - wanted).max() <= 1
    assert (out[::2, ::2] == wanted).mean() > 0.9999


@pytest.mark.parametrize(("antialias", "name"), [(True, "aa1"), (False, "aa0")])
def test_big_visions_floats_before_they_are_cut_off(antialias, name):
    image = golden("images.npz", "480x640").astype(np.float32)
    out = resample(image, 224, 224, antialias=antialias)
    wanted = golden("big_vision_tf.npz", f"bv_bilinear_{name}_float/480x640")
    np.testing.assert_allclose(out[::4, ::4], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("resize", ["pil", "jax", "torch"])
def test_letterbox_centres_on_black_with_the_odd_pixel_at_the_end(resize):
    wide = prepare(np.full((10, 40, 3), 255, np.uint8), 21, resize)  # 21 wide, 5 high: 8 above
    black, white = wide.dtype.type(0 if resize == "pil" else -1), wide.max()
    assert white == (255 if resize == "pil" else 1)
    np.testing.assert_allclose(wide[8:13], white, atol=1e-6)
    assert (wide[:8] == black).all()
    assert (wide[13:] == black).all()
    tall = prepare(np.full((40, 10, 3), 255, np.uint8), 22, resize)  # 22 high, 5 wide
    np.testing.assert_allclose(tall[:, 8:13], white, atol=1e-6)
    assert (tall[:, :8] == black).all()
    assert (tall[:, 13:] == black).all()


@pytest.mark.parametrize("resize", ["pil", "jax", "torch"])
def test_a_very_thin_picture_keeps_at_least_one_pixel(resize):
    out = prepare(np.full((2, 1000, 3), 255, np.uint8), 32, resize)
    assert out.max() == pytest.approx(255 if resize == "pil" else 1)


@pytest.mark.parametrize("resize", ["pil", "bicubic", "tf"])
def test_a_picture_of_the_right_size_comes_back_unchanged_and_writable(resize):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = prepare(image, 16, resize)
    assert np.array_equal(out, image)
    out[0] = 0
    assert image[0].any(), "the input must not be changed"


@pytest.mark.parametrize("resize", ["jax", "torch"])
def test_a_picture_of_the_right_size_is_only_scaled_where_floats_are_wanted(resize):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(prepare(image, 16, resize), to_float(image))


@pytest.mark.parametrize("antialias", [True, False])
def test_resampling_keeps_a_ramp_a_ramp(antialias):
    ramp = np.linspace(0, 1, 90, dtype=np.float32)[:, None, None] * np.ones((1, 7, 3), np.float32)
    out = resample(ramp, 30, 7, antialias=antialias)[1:-1, 0, 0]
    np.testing.assert_allclose(out, ramp[1::3, 0, 0][1:-1], atol=1e-6)  # every third centre


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
    out = prepare(Image.new(mode, (7, 5), colour), 4, "bicubic")
    assert out.shape == (4, 4, 3)
    assert (out == expected).all()


def test_palette_images_take_their_palettes_colours():
    picture = Image.new("RGB", (6, 6), (255, 0, 0)).convert("P")
    assert (prepare(picture, 3, "bicubic") == (255, 0, 0)).all()


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
