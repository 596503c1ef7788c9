"""Where in a forward and backward pass the first number comes up that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from backbone.precision import autocast
from vla.training.job import Microbatch

__all__ = ["Finding", "diagnose", "one_by_one"]


@dataclass(frozen=True)
class Finding:
    """loss: the mean over the samples. norm: of the gradient. where: what is first not finite, in
    the order of weights, inputs, forward pass, backward pass; "" where all is finite."""

    loss: float
    norm: float
    where: str = ""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)

    def __str__(self) -> str:
        first = f"; first not finite: {self.where}" if self.where else ""
        return f"loss {self.loss:.4g}, gradient norm {self.norm:.4g}{first}"


def diagnose(
    model: nn.Module, microbatch: Microbatch, device: torch.device, precision: str
) -> Finding:
    """Forward and backward pass of `microbatch`, as an update makes it; gradients are dropped."""
    seen = _Seen()
    for name, parameter in model.named_parameters():
        seen.look(parameter, f"the weight {name}")
    for k, value in enumerate(microbatch.inputs):
        for name, tensor in _tensors(value, f"input {k}"):
            seen.look(tensor, name)
    model.zero_grad()
    inputs = [value.to(device) for value in microbatch.inputs]
    handles = list(_watched(model, seen))
    try:
        with autocast(device, precision):
            loss = model(*inputs)
        seen.look(loss, "the loss, of what the last module gave it")
        (loss * microbatch.factor).backward()
    finally:
        for handle in handles:
            handle.remove()
    gradients = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
    for name, gradient in gradients:
        seen.look(gradient, f"the gradient of {name}")
    norm = nn.utils.get_total_norm([gradient for _, gradient in gradients]).item()
    model.zero_grad()
    if math.isfinite(norm) and math.isfinite(loss.item()):
        return Finding(loss.item(), norm)
    return Finding(loss.item(), norm, seen.first or "the norm, too large for float32")


def one_by_one(
    model: nn.Module, microbatch: Microbatch, device: torch.device, precision: str
) -> Iterator[tuple[str, Finding]]:
    """The same of each sample by itself, with its name."""
    for row, name in enumerate(microbatch.samples):
        inputs = tuple(_row(value, row) for value in microbatch.inputs)
        yield str(name), diagnose(model, replace(microbatch, inputs=inputs), device, precision)


class _Seen:
    """Remembers the first that is not finite of what it is shown."""

    def __init__(self):
        self.first = ""

    def look(self, tensor: Tensor, name: str) -> None:
        if not self.first and tensor.is_floating_point() and not tensor.isfinite().all():
            self.first = name


def _watched(model: nn.Module, seen: _Seen) -> Iterator[RemovableHandle]:
    """Have `seen` shown what each module gives, and what gradient comes back to that."""

    def forward(name: str, module: nn.Module, args: Any, output: Any) -> None:
        for _, tensor in _tensors(output, name):
            seen.look(tensor, f"what {name} gives")
            if tensor.requires_grad:
                tensor.register_hook(partial(backward, name))

    def backward(name: str, gradient: Tensor) -> None:
        seen.look(gradient, f"the gradient that comes back to {name}")

    for name, module in model.named_modules():
        if name:
            yield module.register_forward_hook(partial(forward, name))


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from _tensors(part, f"{name}[{i}]")
    elif is_dataclass(value):
        for field, part in vars(value).items():
            yield from _tensors(part, f"{name}.{field}")


def _row(value: Any, row: int) -> Any:
    if isinstance(value, Tensor):
        return value[row : row + 1]
    given = {name: part for name, part in vars(value).items() if part is not None}
    return replace(value, **{name: _row(part, row) for name, part in given.items()})
