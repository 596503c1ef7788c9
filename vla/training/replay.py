"""A batch kept as a file, to look at what made a loss NaN."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from backbone.weights import save_tensors
from vla.training.job import Microbatch

__all__ = ["keep"]


def keep(microbatches: Sequence[Microbatch], path: Path) -> Path:
    """Write the tensors of a step's micro-batches to one safetensors file and return its path.

    Names are `<micro-batch>.<input>`, with the field's name behind where the input has some, such
    as `0.0.images`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{i}.{name}": tensor
        for i, microbatch in enumerate(microbatches)
        for k, value in enumerate(microbatch.inputs)
        for name, tensor in _named(str(k), value)
    }
    save_tensors(tensors, path)
    return path


def _named(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif value is not None:
        for field, part in vars(value).items():
            yield from _named(f"{name}.{field}", part)
