"""What a training loop needs to know about the thing it trains, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla.training.start import Start, begin

__all__ = ["Job", "Microbatch"]


@dataclass(frozen=True)
class Microbatch:
    """Inputs of one forward pass.

    inputs: what `model(*inputs)` takes; each has `.to(device)`. size: number of samples, the weight
    of its mean loss among an update's micro-batches. samples: their names, for error messages.
    counts: further numbers to report, such as rows that were cut. factor: of its loss. kind: a name
    under which its loss is reported by itself too, `<kind>_loss`, without the factor.
    tokens: that the transformers read, padding left out, for the speed that is logged; 0: unknown.
    """

    inputs: tuple[Any, ...]
    size: int
    samples: Sequence[Any] = ()
    counts: Mapping[str, float] = field(default_factory=dict)
    factor: float = 1.0
    kind: str = ""
    tokens: int = 0

    def pin_memory(self) -> Microbatch:
        """The same with its inputs' tensors in pages that a card copies from by itself; torch's
        loader calls it."""
        return replace(self, inputs=tuple(map(_pinned, self.inputs)))


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    tensors = {name: x for name, x in vars(value).items() if isinstance(x, Tensor)}
    return replace(value, **{name: x.pin_memory() for name, x in tensors.items()})


@dataclass(frozen=True)
class Job:
    """A model and its data.

    model: `model(*microbatch.inputs)` is a loss, a scalar, the mean over the micro-batch's samples.
    It is on the meta device and begins with what `start` gives, or has its numbers where there is
    no `start`.
    batch: this process's part of the micro-batches of a step (counted from 0), a pure function:
    asked twice, it gives the same. That is what makes resuming exact, and lets worker processes
    prepare steps ahead.
    save: writes the result into an empty folder, with the weights of the model that it is given:
    this one, or one of its kind that was put together from the parts of several processes.
    held_out: micro-batches of the validation loss, the same at every call; None for no validation.
    samples: the names of what this process reads for a step, for messages, without reading it.
    result: name of the result's folder.
    unreached: prefixes of the parameters that none of the losses reaches; they are frozen.
    """

    model: nn.Module
    batch: Callable[[int], Sequence[Microbatch]]
    save: Callable[[nn.Module, Path], None]
    held_out: Callable[[], Iterable[Microbatch]] | None = None
    samples: Callable[[int], Sequence[str]] = lambda step: [f"the samples of step {step}"]
    result: str = "policy"
    start: Start | None = None
    unreached: Sequence[str] = ()

    def begun(self) -> nn.Module:
        """The model with its numbers, on the CPU: all of it in this process."""
        if self.start is not None:
            begin(self.model, self.start(self.model), torch.device("cpu"))
        return self.model
