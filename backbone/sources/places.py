"""Where each of our tensors stands in the files of others."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from backbone.sources.headers import Tensor
from backbone.sources.sizes import Heads

FLOATS = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Place:
    """Where one of our tensors stands: in array `key`, at `index` of its leading axes, its
    remaining axes rearranged by the einops `pattern` (theirs → ours; None: as they are).

    rows: only the first that many are ours (None: all).
    """

    key: str
    index: tuple[int, ...] = ()
    pattern: str | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Weights:
    """Tensors on disk under our names.

    path: what to open: a safetensors file, a folder with an index, an .npz or an orbax folder.
    tensors: the file's own keys. places: our name → where it stands.
    unused: keys that no output depends on, with the reason. stray: keys that nobody knows.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    places: Mapping[str, Place]
    unused: Mapping[str, str] = field(default_factory=dict)
    heads: Heads | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter under our name."""
        return {ours: self.shape(place) for ours, place in self.places.items()}

    def shape(self, place: Place) -> tuple[int, ...]:
        """Of what stands at `place`, as it is read."""
        whole = self.tensors[place.key].shape
        shape = whole[len(place.index) :]
        if place.pattern:
            try:
                shape = rearranged(shape, place.pattern)
            except ValueError as error:
                raise ValueError(
                    f"{self.path}: {place.key} has shape {list(whole)}, of another number of axes "
                    f"than expected ({error})"
                ) from error
        return shape if place.rows is None else (min(place.rows, shape[0]), *shape[1:])

    @property
    def stray(self) -> list[str]:
        used = {place.key for place in self.places.values()}
        return sorted(self.tensors.keys() - used - self.unused.keys())

    @property
    def parameters(self) -> int:
        """Elements that the model has, dead weight left out."""
        used = {place.key for place in self.places.values()}
        return sum(self.tensors[key].count for key in used if key in self.tensors)

    @property
    def unused_bytes(self) -> int:
        return sum(self.tensors[key].bytes for key in self.unused)


def largest_first(weights: Weights) -> Weights:
    """The same in the order that needs the least memory on the way: the end, when all of a model
    stands in memory, adds the smallest."""
    size = {name: math.prod(shape) for name, shape in weights.shapes.items()}
    order = sorted(weights.places, key=lambda name: -size[name])
    return replace(weights, places={name: weights.places[name] for name in order})


def rearranged(shape: tuple[int, ...], pattern: str) -> tuple[int, ...]:
    """What einops' `pattern` makes of a shape: (2, 3, 5) by "n d h -> (n h) d" is (10, 3).

    Raises ValueError if the shape has another number of axes than the pattern.
    """
    before, _, after = pattern.partition("->")
    if len(before.split()) != len(shape):
        raise ValueError(f"{list(shape)} does not fit {pattern!r}")
    size = dict(zip(before.split(), shape, strict=True))
    groups = re.findall(r"\(([^)]*)\)|(\S+)", after)
    return tuple(math.prod(size[name] for name in (a or b).split()) for a, b in groups)


def check_floats(path: Path, tensors: Mapping[str, Tensor], places: Mapping[str, Place]) -> None:
    """Raise ValueError, naming it, if a weight is stored as anything but plain floats."""
    for place in places.values():
        dtype = tensors[place.key].dtype
        if dtype not in FLOATS:
            raise ValueError(
                f"{path}: {place.key} is {dtype}, expected one of {', '.join(FLOATS)}; "
                "quantised weights do not load, give the original checkpoint"
            )


def by_new_name(tensors: Iterable[str], rename, path: Path) -> dict[str, str]:
    """The name that `rename` gives a key → the key.

    Raises ValueError if two keys get the same.
    """
    keys: dict[str, str] = {}
    for key in tensors:
        name = rename(key)
        if name in keys:
            raise ValueError(
                f"{path} holds {keys[name]} and {key}, two names of the same weight; "
                "keep the one that was trained"
            )
        keys[name] = key
    return keys


def some(names: Iterable[str], most: int = 6) -> str:
    """The first few of `names`, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
