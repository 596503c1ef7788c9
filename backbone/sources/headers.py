"""Names, shapes and dtypes of the tensors in a file, read from its header alone.

Nothing here imports torch or reads a tensor, so that `vla inspect` answers at once.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
# safetensors' names for dtypes, and how many bytes each element takes
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


# A zip file's local header: 26 bytes told again elsewhere, then lengths of name and extra field.
_ZIP_LOCAL = struct.Struct("<26sHH")


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor. dtype: torch's name, such as "bfloat16".

    file, offset: where its bytes stand, in C order; None where they are compressed or elsewhere.
    """

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    file: Path | None = None
    offset: int = 0

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * self.itemsize


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`. Raises FileNotFoundError or ValueError, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole folder again")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def safetensors_header(path: Path) -> dict[str, Tensor]:
    """Of one safetensors file, or of a folder's `model.safetensors` or all its index names.

    Raises FileNotFoundError if there is none, ValueError if a file is cut short or is none at all.
    """
    if not path.is_dir():
        return _one_header(path)
    if (path / WEIGHTS).is_file() or not (path / INDEX).is_file():
        return _one_header(path / WEIGHTS)
    where = read_json(path / INDEX).get("weight_map")
    if not isinstance(where, dict):
        raise ValueError(f"{path / INDEX} has no weight_map; copy it again")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        tensors |= _one_header(path / name)
    missing = sorted(where.keys() - tensors.keys())
    if missing:
        raise ValueError(f"{path / INDEX} names {missing[0]}, which {where[missing[0]]} lacks")
    return tensors


def npz_header(path: Path) -> dict[str, Tensor]:
    """Of a NumPy .npz file. Raises FileNotFoundError; ValueError if it is no whole archive of
    arrays, or holds Python objects, which are pickles and never opened."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; expected a .npz file")
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            tensors = {i.filename.removesuffix(".npy"): _npy(archive, raw, i, path) for i in infos}
    except (zipfile.BadZipFile, EOFError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is not a whole .npz file ({error}); copy it again") from error
    objects = [key for key, tensor in tensors.items() if tensor.dtype == "object"]
    if objects:
        raise ValueError(
            f"{path} holds pickled Python objects ({objects[0]}), which can run code and are not "
            "opened; save plain arrays"
        )
    return tensors


def by_dtype(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many elements are held in each dtype, most first."""
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.count
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _one_header(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; expected a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        text = file.read(length) if length <= size - 8 else b""
    start = 8 + length
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(values, path, start) for name, values in header.items()}
        ends = {name: values["data_offsets"] for name, values in header.items()}
        end = max((last for _, last in ends.values()), default=0)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file; copy it again") from error
    if size < start + end:
        raise ValueError(
            f"{path} is not a whole safetensors file: its header tells of {start + end} "
            f"bytes, it has {size}; copy it again"
        )
    for name, (first, last) in ends.items():
        known = any(tensors[name].dtype == dtype for dtype, _ in DTYPES.values())
        if first < 0 or (known and last - first != tensors[name].bytes):
            raise ValueError(
                f"{path} is not a sound safetensors file: {name} {list(tensors[name].shape)} "
                f"{tensors[name].dtype} takes {tensors[name].bytes} bytes, its header gives it "
                f"{last - first}; copy it again"
            )
    return tensors


def _tensor(values: dict[str, Any], path: Path, start: int) -> Tensor:
    name, size = DTYPES.get(values["dtype"], (values["dtype"].lower(), 1))
    offset = start + values["data_offsets"][0]
    return Tensor(tuple(values["shape"]), name, size, path, offset)


def _npy(archive: zipfile.ZipFile, raw: BinaryIO, info: zipfile.ZipInfo, path: Path) -> Tensor:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        return Tensor(tuple(shape), "object", dtype.itemsize)
    kind = "bfloat16" if dtype.kind == "V" and dtype.itemsize == 2 else dtype.name
    size = math.prod(shape) * dtype.itemsize
    if start + size != info.file_size:
        raise ValueError(f"{info.filename} has {info.file_size - start} bytes of {size}")
    mapped = info.compress_type == zipfile.ZIP_STORED and dtype.isnative
    if not mapped or (fortran and len(shape) > 1):
        return Tensor(tuple(shape), kind, dtype.itemsize)
    raw.seek(info.header_offset)
    local = raw.read(_ZIP_LOCAL.size)
    name, extra = _ZIP_LOCAL.unpack(local)[-2:]
    offset = info.header_offset + _ZIP_LOCAL.size + name + extra + start
    if offset + size > path.stat().st_size:
        raise ValueError(f"{info.filename} reaches beyond its end")
    return Tensor(tuple(shape), kind, dtype.itemsize, path, offset)
