"""Pictures as people and attackers send them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from running import data_uri, encoded

from vla.serving.metrics import memory


def rgb(width: int, height: int, value: int = 9) -> Image.Image:
    return Image.new("RGB", (width, height), (value, value, value))


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that says it has this size, whose pixels are all zero and pack to almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = 1 + width * (3 if colour == 2 else 1) * depth // 8
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def sum_seen(server, data: bytes, kind: str = "png") -> tuple[int, list[int]]:
    """What the fake model saw: the sum of all bytes, and the size."""
    choice = server.chat("hi", data_uri(data, kind)).json()["choices"][0]
    return int(choice["message"]["content"].partition("](")[2][:-1]), choice["vla"]["image_sizes"][
        0
    ]


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (rgb(6, 4), "PNG", {}),
        (rgb(6, 4), "WEBP", {"lossless": True}),
        (rgb(6, 4).convert("L"), "PNG", {}),
        (rgb(6, 4).quantize(4), "PNG", {}),
        (rgb(6, 4).convert("LA"), "PNG", {}),
        (Image.fromarray(np.full((4, 6), 9 * 257, np.uint16)), "PNG", {}),
        (Image.fromarray(np.full((4, 6, 4), (9, 9, 9, 0), np.uint8)), "PNG", {}),
        (rgb(6, 4), "PNG", {"save_all": True, "append_images": [rgb(6, 4, 99)] * 99}),
        (rgb(6, 4), "WEBP", {"save_all": True, "append_images": [rgb(6, 4, 99)], "lossless": True}),
    ],
    ids=["rgb", "webp", "grey", "palette", "grey-alpha", "16-bit", "alpha", "apng", "film"],
)
def test_every_usual_kind_of_picture_is_seen_as_its_colours(fake, image, kind, options):
    assert sum_seen(fake, encoded(image, kind, **options)) == (6 * 4 * 3 * 9, [6, 4])


def test_cmyk_is_converted(fake):
    data = encoded(rgb(16, 8, 200).convert("CMYK"), "JPEG", quality=100)
    total, size = sum_seen(fake, data, "jpeg")
    assert total / (16 * 8 * 3) == pytest.approx(200, abs=3)
    assert size == [16, 8]


def test_a_photo_taken_sideways_is_seen_upright(fake):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert sum_seen(fake, encoded(rgb(16, 8), "JPEG", exif=exif), "jpeg")[1] == [8, 16]


def test_one_pixel_is_a_picture(fake):
    assert sum_seen(fake, encoded(rgb(1, 1))) == (27, [1, 1])


def test_the_type_in_the_url_does_not_have_to_be_right(fake):
    assert sum_seen(fake, encoded(rgb(2, 2)), "jpeg")[1] == [2, 2]


def gif() -> bytes:
    file = io.BytesIO()
    rgb(4, 4).save(file, "GIF")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        png(13300, 13300),
        png(9400, 9400, depth=16),
        png(65535, 1),
        encoded(rgb(20_000, 1)),
        png(4097, 4101),
        encoded(rgb(64, 64), "JPEG")[:-100],
        encoded(rgb(64, 64))[:60],
        encoded(rgb(64, 64))[:20],
        b"\x89PNG\r\n\x1a\n",
        b"hello",
        bytes(100),
        gif(),
        encoded(rgb(4, 4), "TIFF"),
        encoded(rgb(4, 4), "BMP"),
        encoded(rgb(4, 4), "ICO"),
        encoded(rgb(4, 4), "EPS"),
        b"SIMPLE  =                    T" + bytes(3000),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    ],
    ids=[
        "bomb", "16-bit bomb", "thread", "thin", "large", "cut JPEG", "cut PNG", "head", "magic",
        "text", "zeros", "gif", "tiff", "bmp", "ico", "eps", "fits", "svg",
    ],
)  # fmt: skip
def test_bombs_scraps_and_other_formats_are_refused_at_once(fake, data):
    response = fake.chat("hi", data_uri(data))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "invalid_image"
    assert error["param"] == "messages[0].content[0].image_url.url"


def test_bombs_do_not_fill_the_memory(fake):
    bomb = data_uri(png(9400, 9400))
    fake.chat("hi", bomb)
    before = memory()
    for _ in range(20):
        assert fake.chat("hi", bomb).status_code == 400
    assert memory() < before + 50e6


def test_damage_in_any_place_is_answered(fake):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded(image, kind)
        for _ in range(40):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 3):
                data[at] = rng.integers(0, 256)
            assert fake.chat("hi", data_uri(bytes(data))).status_code in (200, 400)
