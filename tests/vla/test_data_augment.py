"""Random preprocessing against closed forms and against Pillow's and torch's own resizing."""

import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from backbone.image import resample
from vla.data.augment import Augment, Window, inception_window, random_jpeg, random_resize
from vla.data.resampling import METHODS, resize, weights

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(PICTURE[:6, :8]).resize((60, 48), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("antialias", [True, False])
def test_a_flat_picture_stays_flat_and_the_same_size_is_the_same_picture(method, antialias):
    flat = np.full((13, 7, 3), 77, np.uint8)
    for size in ((5, 9), (30, 3)):
        np.testing.assert_allclose(resize(flat, *size, method, antialias), 77, atol=1e-4)
    same = resize(PICTURE, 48, 60, method, antialias)
    if method == "mitchellcubic":  # it blurs: 8/9 of a pixel, 1/18 of either neighbour
        row = weights(9, 9, method)[4]
        np.testing.assert_allclose(row[3:6], [1 / 18, 8 / 9, 1 / 18], atol=1e-6)
    else:
        np.testing.assert_allclose(same, PICTURE, atol=2e-4)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos3", "mitchellcubic"])
def test_a_ramp_stays_a_ramp_inside(method):
    """All four kernels keep straight lines, away from the border, when enlarging twice."""
    found = weights(40, 80, method) @ np.arange(40)
    expected = (np.arange(80) + 0.5) / 2 - 0.5
    tolerance = 0.02 if method == "lanczos3" else 1e-4  # a windowed sinc does so nearly
    np.testing.assert_allclose(found[8:-8], expected[8:-8], atol=tolerance)


def test_values_between_two_pixels_are_those_of_the_kernels():
    """Half way between two pixels, enlarging by two from their centres."""
    taps = {m: weights(16, 32, m)[15] for m in METHODS}  # at 7.75 of pixels with centres at n + ½
    np.testing.assert_allclose(taps["bilinear"][6:9], [0, 0.75, 0.25], atol=1e-6)
    np.testing.assert_allclose(
        taps["bicubic"][6:10], [-0.0703125, 0.8671875, 0.2265625, -0.0234375], atol=1e-6
    )
    assert taps["area"][7] == 1


def test_area_is_the_mean_of_what_a_pixel_covers():
    blocks = PICTURE.reshape(12, 4, 20, 3, 3).astype(np.float64).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(PICTURE, 12, 20, "area"), blocks, atol=1e-3)
    np.testing.assert_allclose(weights(3, 2, "area"), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])


@pytest.mark.parametrize(
    ("method", "filter"),
    [
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("lanczos3", Image.Resampling.LANCZOS),
    ],
)
@pytest.mark.parametrize("size", [(20, 31), (70, 90)])
def test_antialiased_resizing_is_pillows(method, filter, size):
    calm = 112 + PICTURE // 8  # Pillow clips between its two passes, where noise overshoots
    pillow = np.asarray(Image.fromarray(calm).resize(size[::-1], filter), np.float32)
    found = resize(calm, size[0], size[1], method)
    assert np.abs(found - pillow).max() < 1.6  # Pillow rounds after each of two passes


def test_bilinear_and_bicubic_are_those_of_the_model_and_of_torch():
    wide = PICTURE.astype(np.float32)
    for antialias in (True, False):
        expected = resample(wide, 20, 31, antialias=antialias)
        found = resize(PICTURE, 20, 31, "bilinear", antialias)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    tensor = torch.from_numpy(wide).permute(2, 0, 1)[None]
    cubic = torch.nn.functional.interpolate(tensor, (20, 31), mode="bicubic", antialias=True)
    expected = cubic[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(resize(PICTURE, 20, 31, "bicubic"), expected, atol=1e-3)


def test_ten_resizes_are_drawn_alike_often():
    rng = np.random.default_rng(0)
    found = Counter(random_resize(PICTURE, 16, rng).tobytes() for _ in range(900))
    assert len(found) == 9  # area with and without antialiasing is the same
    share = sorted(found.values())
    assert 60 < share[0] <= share[-2] < 125
    assert 140 < share[-1] < 220


def test_jpeg_qualities_are_75_to_95():
    def encoded(quality):
        data = io.BytesIO()
        Image.fromarray(SMOOTH).save(data, "JPEG", quality=quality)
        return np.asarray(Image.open(data).convert("RGB")).tobytes()

    known = {encoded(q): q for q in range(70, 101)}
    rng = np.random.default_rng(1)
    found = {known[random_jpeg(SMOOTH, rng).tobytes()] for _ in range(300)}
    assert min(found) == 75
    assert max(found) == 95
    assert len(found) > 15


def test_crops_keep_the_area_the_aspect_and_the_pixels():
    rng = np.random.default_rng(2)
    grid = np.stack([*np.mgrid[:100, :120], np.zeros((100, 120))], 2).astype(np.uint8)
    areas = []
    for _ in range(200):
        window = inception_window(100, 120, rng, 0.5)
        piece = window.of(grid)
        h, w = piece.shape[:2]
        if (h, w) != (100, 120):
            assert 0.74 < w / h < 1.35
        areas.append(h * w / 12000)
        top, left = piece[0, 0, :2]
        assert window == Window(top, left, h, w)
        np.testing.assert_array_equal(piece, grid[top : top + h, left : left + w])
    assert min(areas) >= 0.5
    assert min(areas) < 0.55
    assert max(areas) > 0.9
    assert inception_window(10, 400, rng, 0.9) == Window(0, 0, 10, 400)  # no such piece fits


def test_boxes_are_told_from_the_corner_of_the_piece_and_end_at_its_edges():
    window = Window(top=10, left=20, height=50, width=60)
    assert window.moved((30, 15, 40, 30)) == (10, 5, 20, 20)
    assert window.moved((0, 0, 100, 100)) == (0, 0, 60, 50)
    assert window.moved((0, 15, 21, 30)) == (0, 5, 1, 20)
    assert window.moved((0, 15, 20.5, 30)) is None  # half a pixel is left
    assert window.moved((85, 15, 99, 30)) is None
    crops = [Augment(crop=0.3).window(100, 100, np.random.default_rng(k)) for k in range(200)]
    assert 30 < sum(w != Window(0, 0, 100, 100) for w in crops) < 90


def test_augmentation_is_a_pure_function_of_the_generator():
    once, again = (Augment()(PICTURE, 24, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert once.shape == (24, 24, 3)
    plain = Augment(crop=0, jpeg=0, resize=False)(PICTURE, 24, np.random.default_rng(3))
    expected = resize(PICTURE, 24, 24).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(plain, expected)
    with pytest.raises(ValueError, match=r"augment\.jpeg is 2"):
        Augment(jpeg=2)
