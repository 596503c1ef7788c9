"""Files that claim to be pictures: what is read, and what is refused in one line."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from backbone.picture_file import PICTURE_LIMITS, STILL_FORMATS, PictureLimits, open_picture

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), np.uint8)
WIDE = PictureLimits(aspect=float("inf"), formats=STILL_FORMATS)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP"])
def test_lossless_files_keep_their_pixels(kind, tmp_path):
    exact = Image.fromarray(PIXELS).quantize(16) if kind == "GIF" else Image.fromarray(PIXELS)
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "picture"  # the name does not matter
    path.write_bytes(encoded(exact, kind, **options))
    for source in (path, str(path), path.read_bytes()):
        assert np.array_equal(open_picture(source, WIDE), np.array(exact.convert("RGB")))


def test_greys_of_sixteen_bits_are_scaled_not_clipped():
    grey = np.array([[0, 257, 32768, 65535]], np.uint16)
    read = open_picture(encoded(Image.fromarray(grey)), WIDE)
    assert read.tolist() == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_grey_palette_alpha_and_cmyk_become_rgb():
    picture = Image.fromarray(PIXELS)
    grey = picture.convert("L")
    assert np.array_equal(open_picture(encoded(grey))[..., 1], np.array(grey))
    palette = picture.quantize(8)
    assert np.array_equal(open_picture(encoded(palette)), np.array(palette.convert("RGB")))
    clear = picture.copy()
    clear.putalpha(0)
    assert np.array_equal(open_picture(encoded(clear)), PIXELS)
    red = Image.new("RGB", (16, 16), (200, 30, 20)).convert("CMYK")
    read = open_picture(encoded(red, "JPEG", quality=95)).astype(int)
    assert np.abs(read - [200, 30, 20]).max() <= 8


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its right side
    read = open_picture(encoded(Image.fromarray(PIXELS), "PNG", exif=exif))
    assert np.array_equal(read, np.rot90(PIXELS, -1))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (open_picture(data, WIDE) == [255, 0, 0]).all()


def test_the_smallest_picture_and_the_longest_are_read():
    assert open_picture(encoded(Image.new("RGB", (1, 1)))).shape == (1, 1, 3)
    long = encoded(Image.new("RGB", (20_000, 1)))
    assert open_picture(long, WIDE).shape == (1, 20_000, 3)
    with pytest.raises(ValueError, match=r"20000 × 1 pixels, longer than 20 : 1"):
        open_picture(long)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((4200, 4200), r"4200 × 4200 pixels, at most 16,800,000"),
        ((13300, 13300), r"13300 × 13300 pixels, at most 16,800,000"),
        ((100_000, 100_000), "more pixels than Pillow opens"),
    ],
)
def test_a_decompression_bomb_is_refused_by_its_header(size, message):
    with pytest.raises(ValueError, match=message):
        open_picture(png_header(*size))


def test_large_files_are_not_read(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(bytes(11))
    with pytest.raises(ValueError, match=r"large.png has 11 bytes, at most 10 are read"):
        open_picture(path, PictureLimits(bytes=10))


@pytest.mark.parametrize(
    "data", [b"no picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF"]
)
def test_what_is_no_picture_is_told(data):
    with pytest.raises(ValueError, match="upload is no picture that can be read, expected JPEG"):
        open_picture(data, name="upload")


def test_an_empty_file_is_told():
    with pytest.raises(ValueError, match="the picture is empty"):
        open_picture(b"")


def test_formats_that_run_other_programs_or_are_rare_are_not_opened():
    tiff = encoded(Image.fromarray(PIXELS), "TIFF")
    with pytest.raises(ValueError, match="no picture that can be read"):
        open_picture(tiff, WIDE)
    assert open_picture(encoded(Image.fromarray(PIXELS), "JPEG")).shape == PIXELS.shape
    with pytest.raises(ValueError, match="no picture that can be read"):
        open_picture(encoded(Image.fromarray(PIXELS), "GIF"), PICTURE_LIMITS)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_that_is_cut_short_or_damaged_is_read_or_refused(kind):
    """Never anything but a picture or a ValueError."""
    noise = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8))
    data = encoded(noise, kind)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data[: RNG.integers(1, len(data) + 1)])
        for at in RNG.integers(0, len(damaged), RNG.integers(0, 4)):
            damaged[at] = RNG.integers(0, 256)
        refused += complaint(bytes(damaged)) is not None
    assert refused > 30
    with pytest.raises(ValueError, match=r"damaged or cut short|no picture"):
        open_picture(data[: len(data) // 2], WIDE)


def complaint(data: bytes) -> str | None:
    """What `open_picture` says of the file, if it refuses it."""
    try:
        open_picture(data, WIDE)
    except ValueError as error:
        return str(error)
    return None
