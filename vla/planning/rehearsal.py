"""One forward and backward pass on tensors without numbers: its memory and its work.

What runs is the model's own code, on torch's fake tensors, so that a plan can't differ from what
will be run. Only what kernels need inside themselves is not seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backbone.precision import autocast
from vla.planning.live import Envelope, Live
from vla.planning.work import Work
from vla.training.optimiser import trained_parameters
from vla.training.parallel import blocks, recompute

__all__ = ["Rehearsal", "count_flops", "fake", "rehearse", "tell_batch"]

BATCHES = (10_007, 10_009, 10_037)  # primes, larger than what models have many of


@dataclass(frozen=True)
class Rehearsal:
    """activations: bytes beside the weights during the pass, gradients among them where asked for.
    forward, backward: FLOPs of one sample, a multiply-add counting two. unused: parameters that no
    gradient reaches."""

    activations: Envelope
    forward: float
    backward: float
    unused: tuple[str, ...]


def rehearse(
    model: nn.Module,
    inputs: Callable[[int], Sequence[Any]],
    *,
    precision: str,
    every: int | None,
    gradients: bool,
    keep_products: bool = False,
) -> Rehearsal:
    """Run `model`, built on the meta device, forwards and backwards; it is of no use afterwards.

    inputs: what `model(*inputs)` takes, for a batch size. precision: as in `RunConfig`. every: the
    blocks whose activations are computed again (`ParallelConfig.recompute`), all of them or all but
    products. gradients: they stay, and count; else each is gone as soon as it is there.
    """
    batch = tell_batch(model)
    if every is not None:
        for block in list(blocks(model))[::every]:
            recompute(block, keep_products)
    with fake() as device:
        model.to_empty(device=device)
        given = inputs(batch)
        if not gradients:
            for parameter in trained_parameters(model).values():
                parameter.register_post_accumulate_grad_hook(_drop)
        reached: set[str] = set()
        for name, parameter in trained_parameters(model).items():
            parameter.register_hook(partial(_note, reached, name))
        forward, backward = Work(), Work()
        with Live(batch) as live:
            live.ignore(model.parameters())
            live.ignore(model.buffers())
            with forward, autocast(device, precision):
                loss = model(*given)
            with backward:
                loss.backward()
    unused = [name for name in trained_parameters(model) if name not in reached]
    return Rehearsal(
        live.envelope,
        forward.flops / batch,
        backward.flops / batch,
        tuple(unused),
    )


def count_flops(model: nn.Module, inputs: Sequence[Any]) -> float:
    """FLOPs of a forward and backward pass of `model`, whose parameters are on the meta device, on
    tensors with the shapes of `inputs`, which are only looked at."""
    model = copy.deepcopy(model)
    with fake() as device, Work() as work:
        model.to_empty(device=device)(*(x.to(device) for x in inputs)).backward()
    return work.flops


@contextmanager
def fake() -> Iterator[str]:
    """Inside the block tensors have shapes and no numbers; gives the name of their device.

    It is the card where there is one, so that the kernels are those of the card.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        yield device


def tell_batch(model: nn.Module) -> int:
    """A batch size that divides the size of nothing but what grows with the batch."""
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    return next(b for b in BATCHES if all(size % b for size in sizes))


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _note(reached: set[str], name: str, _: Tensor) -> None:
    reached.add(name)
