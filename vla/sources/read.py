"""Reads tensors of a policy one at a time, wherever they stand in its files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from backbone.sources import read as files
from backbone.sources.places import Weights
from vla.sources.orbax import Orbax

if TYPE_CHECKING:
    from torch import Tensor


def read(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Every one of our names with its tensor, as `backbone.sources.read` gives it, also from the
    orbax folder of a JAX checkpoint."""
    if all(tensor.file for tensor in weights.tensors.values()):
        return files.read(weights)
    return files.read(weights, Orbax(weights.path).read if weights.path.is_dir() else None)
