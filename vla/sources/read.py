"""Reads tensors of a checkpoint one at a time, wherever they stand in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla.layouts import Place
from vla.sources.headers import INDEX, WEIGHTS, read_json
from vla.sources.orbax import Orbax


def read(path: Path, places: Mapping[str, Place]) -> Iterator[tuple[str, Tensor]]:
    """Every name of `places` with its tensor, in the dtype of the file, in `reading_order`.

    path: a safetensors file, a folder of them, or an orbax folder. An array that holds several
    tensors is read once. Raises ValueError if a file is not whole.
    """
    names = _by_key(places)
    for key, array in _arrays(path, names):
        for name in names[key]:
            place = places[name]
            part = array[place.index] if place.index else array
            yield name, rearrange(part, place.pattern) if place.pattern else part


def reading_order(places: Mapping[str, Place]) -> list[str]:
    """The names in the order in which `read` gives their tensors."""
    return [name for names in _by_key(places).values() for name in names]


def _by_key(places: Mapping[str, Place]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, place in places.items():
        names.setdefault(place.key, []).append(name)
    return names


def _arrays(path: Path, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    if path.is_file():
        return _safetensors(dict.fromkeys(keys, path))
    if (path / WEIGHTS).is_file():
        return _safetensors(dict.fromkeys(keys, path / WEIGHTS))
    if (path / INDEX).is_file():
        files = read_json(path / INDEX)["weight_map"]
        return _safetensors({key: path / files[key] for key in keys})
    return _orbax(path, keys)


def _safetensors(where: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    with ExitStack() as opened:
        files = {}
        for path in set(where.values()):
            try:
                files[path] = opened.enter_context(safe_open(path, "pt"))
            except SafetensorError as error:
                raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
        for key, path in where.items():
            yield key, files[path].get_tensor(key)


def _orbax(path: Path, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    source = Orbax(path)
    for key in keys:
        array = source.read(key)
        if array.dtype.name == "bfloat16":  # torch does not know ml_dtypes'
            yield key, torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            yield key, torch.from_numpy(array)
