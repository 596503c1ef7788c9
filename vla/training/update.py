"""One update: forward and backward over micro-batches, checks, clipping, the optimiser's step."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from backbone.precision import autocast
from vla.training.faults import NotFinite
from vla.training.job import Microbatch
from vla.training.optimiser import Optimisers
from vla.training.parallel import reduce_next, reshard
from vla.training.world import ALONE, World

__all__ = ["Gate", "Outcome", "Update", "update", "validation_loss"]


@dataclass(frozen=True)
class Outcome:
    """loss: mean over all samples. norm: of the gradient, before clipping. kinds: the mean loss of
    each kind of micro-batch that has a name, without factors, `<kind>_loss`."""

    loss: float
    norm: float
    kinds: dict[str, float]


class Gate:
    """Lets an update through unless its loss or gradient is not finite, or too many before it were.

    It decides on the device, so that the host may hear of it later; what is not let through changes
    nothing. limit: how many are left out before it closes for good. skipped: how many were already.
    """

    def __init__(self, device: torch.device, limit: int = 0, skipped: int = 0):
        self._limit = limit
        self._skipped = torch.full((), float(skipped), device=device)

    def shut(self, numbers: Tensor, world: World) -> Tensor:
        """1.0 where the update of these losses and this norm, or another process's, must not be
        made, else 0.0."""
        bad = world.most(1.0 - numbers.isfinite().all().float())
        self._skipped = self._skipped + bad
        return torch.maximum(bad, (self._skipped > self._limit).float())


class Update:
    """An update that was asked for. A card may still be at work on it.

    shut: float32 scalar on the device, 1 where the update isn't made. microbatches: this process's.
    """

    def __init__(
        self,
        step: int,
        microbatches: Sequence[Microbatch],
        numbers: Tensor,
        shut: Tensor,
        world: World,
    ):
        self.step, self.microbatches, self.shut = step, microbatches, shut
        self._world, self._event, self._numbers = world, None, numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def outcome(self) -> Outcome:
        """Wait for it. Collective. Raises NotFinite, in all processes, if the loss or the norm is
        not finite in one of them; neither weights nor moments changed then."""
        if self._event is not None:
            self._event.synchronize()
        *losses, norm = self._numbers.tolist()
        every = self._world.gather([*losses, norm])
        _check_finite(self.step, losses, norm, self.microbatches, every)
        total = sum(m.size for m in self.microbatches)
        weights = [m.factor * m.size / total for m in self.microbatches]
        means = [sum(x * w for x, w in zip(row[:-1], weights, strict=True)) for row in every]
        return Outcome(sum(means) / len(means), norm, _by_kind(self.microbatches, every))


def update(
    model: nn.Module,
    optimiser: Optimisers,
    microbatches: Sequence[Microbatch],
    *,
    step: int,
    device: torch.device,
    precision: str = "float32",
    clip: float | None = None,
    world: World = ALONE,
    gate: Gate | None = None,
    reduce_once: bool = True,
) -> Update:
    """One update from all micro-batches together, which the host doesn't wait for.

    The gradient is that of the mean loss over all samples, however they are divided, over
    processes too: sharding averages gradients over these, which have equally many samples. A
    micro-batch's `factor` multiplies its loss. gate: of the run, if there are updates before this
    one. reduce_once: as in `ParallelConfig`.
    Weights and moments stay as they are, in all processes, if the loss or the norm is not finite in
    one of them; `Update.outcome` tells.
    """
    optimiser.zero_grad()
    _check_kinds(step, microbatches, world)
    losses = _backward(model, microbatches, device, precision, reduce_once)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    numbers = torch.stack([*losses, norm.to(losses[0])])
    shut = (gate or Gate(numbers.device)).shut(numbers, world)
    shut = shut.to(parameters[0].device)  # another one where weights stay on the host
    optimiser.step(shut)
    return Update(step, microbatches, numbers, shut, world)


def _by_kind(microbatches: Sequence[Microbatch], every: list[list[float]]) -> dict[str, float]:
    """The mean loss over the samples of each kind, `<kind>_loss`, over processes too."""
    found = {}
    for kind in dict.fromkeys(m.kind for m in microbatches if m.kind):
        those = [(i, m.size) for i, m in enumerate(microbatches) if m.kind == kind]
        total = len(every) * sum(size for _, size in those)
        found[f"{kind}_loss"] = sum(e[i] * size for e in every for i, size in those) / total
    return found


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    microbatches: Iterable[Microbatch],
    device: torch.device,
    precision: str,
    world: World = ALONE,
) -> float:
    """Mean loss over the samples of all micro-batches; the model stays in the mode it was in.

    Processes take turns, and run equally often: the last one again where they don't come out even.
    """
    training = model.training
    model.eval()
    every = list(microbatches)
    total, count = 0.0, 0
    for i in range(world.rank, math.ceil(len(every) / world.size) * world.size, world.size):
        microbatch = every[min(i, len(every) - 1)]
        loss = _loss(model, microbatch, device, precision).item()
        if i < len(every):
            total += loss * microbatch.size
            count += microbatch.size
    reshard(model)
    model.train(training)
    sums = world.gather([total, count])
    return sum(s[0] for s in sums) / sum(s[1] for s in sums)


def _backward(
    model: nn.Module,
    microbatches: Sequence[Microbatch],
    device: torch.device,
    precision: str,
    reduce_once: bool,
) -> list[Tensor]:
    """Add the gradient of the mean loss over all samples; returns each micro-batch's mean loss.

    A kind of micro-batch goes through parts of the model that another one may not, so the last one
    of each sums what its kind has gathered.
    """
    total = sum(m.size for m in microbatches)
    last = {m.kind: i for i, m in enumerate(microbatches)}
    losses = []
    for i, microbatch in enumerate(microbatches):
        reduce_next(model, not reduce_once or last[microbatch.kind] == i)
        loss = _loss(model, microbatch, device, precision)
        (loss * (microbatch.factor * microbatch.size / total)).backward()
        losses.append(loss.detach())
    return losses


def _loss(model: nn.Module, microbatch: Microbatch, device: torch.device, precision: str) -> Tensor:
    inputs = [x.to(device) for x in microbatch.inputs]
    with autocast(device, precision):
        return model(*inputs)


def _check_kinds(step: int, microbatches: Sequence[Microbatch], world: World) -> None:
    """Raise ValueError where processes would go through different parts of the model, and wait for
    one another for ever."""
    kinds = [m.kind for m in microbatches]
    if world.size == 1 or not any(kinds):
        return
    every = world.gather([zlib.crc32("|".join(kinds).encode())])
    if any(row != every[0] for row in every):
        raise ValueError(
            f"process {world.rank} has micro-batches of the kinds {kinds} at step {step}, another "
            "one has others; each needs the same kinds in the same order"
        )


def _check_finite(
    step: int,
    losses: list[float],
    norm: float,
    microbatches: Sequence[Microbatch],
    every: list[list[float]],
) -> None:
    """every: losses and norm of each process, of which this one's samples are `microbatches`."""
    if all(map(math.isfinite, [x for row in every for x in row])):
        return
    if all(map(math.isfinite, losses)) and not all(
        map(math.isfinite, [x for row in every for x in row[:-1]])
    ):
        bad = [rank for rank, row in enumerate(every) if not all(map(math.isfinite, row[:-1]))]
        raise NotFinite(
            f"the loss at step {step} is not finite in process {', '.join(map(str, bad))}, which "
            "names the samples; the update was not made"
        )
    wrong = [m for m, x in zip(microbatches, losses, strict=True) if not math.isfinite(x)]
    samples = [sample for m in wrong or microbatches for sample in m.samples]
    what = f"loss {losses}" if wrong else f"gradient norm {norm}"
    raise NotFinite(
        f"{what} at step {step} is not finite; the update was not made. It came from the samples "
        f"{samples}. Look at these for NaN or extreme values, or lower optim.lr"
    )
