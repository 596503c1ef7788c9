"""One update: forward and backward over micro-batches, checks, clipping, the optimiser's step."""

import math
import zlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla.training.faults import NotFinite
from vla.training.job import Microbatch
from vla.training.optimiser import Optimisers
from vla.training.parallel import reduce_next, reshard
from vla.training.world import ALONE, World

__all__ = ["update", "validation_loss"]


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
    kinds: dict[str, float] | None = None,
    reduce_once: bool = True,
) -> tuple[float, float]:
    """One update from all micro-batches together; returns (loss, gradient norm before clipping).

    The gradient is that of the mean loss over all samples, however they are divided, over
    processes too: sharding averages gradients over these, which have equally many samples. A
    micro-batch's `factor` multiplies its loss. kinds: gets the mean loss of each kind of
    micro-batch that has a name, without factors. reduce_once: as in `ParallelConfig`.
    Raises NotFinite, in all processes and before weights or moments change, if the loss or the
    norm is not finite in one of them.
    """
    optimiser.zero_grad()
    _check_kinds(step, microbatches, world)
    losses = _backward(model, microbatches, device, precision, reduce_once)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    total_norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    if isinstance(total_norm, DTensor):
        total_norm = total_norm.full_tensor()
    *each, norm = torch.stack([*losses, total_norm.to(losses[0])]).tolist()
    every = world.gather([*each, norm])
    _check_finite(step, each, norm, microbatches, every)
    optimiser.step()
    total = sum(m.size for m in microbatches)
    weights = [m.factor * m.size / total for m in microbatches]
    means = [sum(x * w for x, w in zip(row[:-1], weights, strict=True)) for row in every]
    if kinds is not None:
        kinds |= _by_kind(microbatches, every)
    return sum(means) / len(means), norm


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
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
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
