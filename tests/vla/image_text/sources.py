"""The same few examples as a JSONL folder, a tar, parquet files and an image folder."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 12


def picture(i: int, height: int = 20, width: int = 30) -> np.ndarray:
    """A picture that tells its number: all pixels of a colour of its own."""
    return np.full((height, width, 3), (20 * i, 255 - 20 * i, 7 * i), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def fields(i: int) -> dict:
    return {
        "suffixes": [f"number {i}", f"the {i}"],
        "objects": [{"label": "all", "box": [0, 0, 30, 20]}],
    }


def jsonl(folder: Path) -> Path:
    folder.mkdir()
    for i in range(COUNT):
        (folder / f"{i}.png").write_bytes(png(picture(i)))
    lines = [json.dumps({"image": f"{i}.png", **fields(i)}) for i in range(COUNT)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def tars(folder: Path) -> Path:
    folder.mkdir()
    for half in range(2):
        members = {}
        for i in range(half * COUNT // 2, (half + 1) * COUNT // 2):
            members[f"shard/{i:04d}.png"] = png(picture(i))
            members[f"shard/{i:04d}.json"] = json.dumps(fields(i)).encode()
        tar(folder / f"{half}.tar", members)
    return folder


def parquet(path: Path, count: int = COUNT) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"image": {"bytes": png(picture(i)), "path": None}, "texts": fields(i)["suffixes"]}
        for i in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def image_folder(folder: Path) -> Path:
    folder.mkdir()
    lines = []
    for i in range(COUNT):
        (folder / f"{i:02d}.png").write_bytes(png(picture(i)))
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
