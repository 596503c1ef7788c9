"""Writes a safetensors file tensor by tensor, so that a 13 GB model never stands in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from backbone.sources.headers import DTYPES

_NAMES = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
_SIZES = dict(DTYPES.values())
_ALIGNMENT = 8  # bytes; safetensors pads its header so that data starts at a multiple


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write `tensors` in the order of `shapes`, name → (shape, torch's dtype name).

    Raises ValueError if a tensor is another than `shapes` announced.
    """
    start = 0
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, (shape, dtype) in shapes.items():
        size = _SIZES[dtype]
        for length in shape:
            size *= length
        ends = [start, start + size]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": ends}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for (name, (shape, dtype)), (given, tensor) in zip(shapes.items(), tensors, strict=True):
            if (given, tuple(tensor.shape), str(tensor.dtype)) != (name, shape, f"torch.{dtype}"):
                raise ValueError(f"expected {name} {shape} {dtype}, got {given} {tensor.shape}")
            file.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
