"""Reads tensors of a file one at a time, wherever they stand in it.

A tensor is a mapping of its own bytes and goes with them: reading a whole model this way takes no
more memory than its largest tensor.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from backbone.sources import headers
from backbone.sources.places import Place, Weights

_PLAIN = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}  # not NumPy's


def read(weights: Weights, whole: Callable[[str], np.ndarray] | None = None) -> Iterator[tuple]:
    """Every one of our names with its tensor, in the dtype of the file, in `reading_order`.

    whole: gives the array of a key that cannot be mapped; for an .npz it is read out of it.
    Each tensor may be used until the next is asked for. Raises ValueError if a file is not whole.
    """
    whole = whole or NpzReader(weights.path)
    for key, names in by_key(weights.places).items():
        header = weights.tensors[key]
        array = None if header.file else from_numpy(whole(key))
        for name in names:
            place = weights.places[name]
            if array is None:
                part = mapped(header, place.index)
            else:
                part = array[place.index] if place.index else array
            part = rearrange(part, place.pattern) if place.pattern else part
            yield name, part if place.rows is None else part[: place.rows]
            del part


def reading_order(places: Mapping[str, Place]) -> list[str]:
    """The names in the order in which `read` gives their tensors."""
    return [name for names in by_key(places).values() for name in names]


def by_key(places: Mapping[str, Place]) -> dict[str, list[str]]:
    """The names of each key; an array that holds several tensors is read once."""
    names: dict[str, list[str]] = {}
    for name, place in places.items():
        names.setdefault(place.key, []).append(name)
    return names


def mapped(header: headers.Tensor, index: tuple[int, ...] = ()) -> Tensor:
    """The tensor at `index` of the array's leading axes; its pages are read as it is used."""
    assert header.file is not None
    shape = header.shape[len(index) :]
    at = 0
    for i, length in zip(index, header.shape, strict=False):
        at = at * length + i
    start = header.offset + at * math.prod(shape) * header.itemsize
    dtype = _PLAIN.get(header.dtype, header.dtype)
    if not math.prod(shape):
        return torch.zeros(shape, dtype=getattr(torch, header.dtype))
    array = np.memmap(header.file, dtype, "c", start, shape)
    return torch.from_numpy(array).view(getattr(torch, header.dtype))


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor of `array`; two bytes that NumPy has no name for are bfloat16."""
    if array.dtype.name == "bfloat16" or (array.dtype.kind == "V" and array.dtype.itemsize == 2):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


class NpzReader:
    """Whole arrays of an .npz file, for those that are compressed."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, key: str) -> np.ndarray:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as file:
            try:
                return np.lib.format.read_array(file, allow_pickle=False)
            except (ValueError, zipfile.BadZipFile, EOFError) as error:
                raise ValueError(
                    f"{self.path}: {key} cannot be read ({error}); copy it again"
                ) from error
