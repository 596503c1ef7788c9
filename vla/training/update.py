"""One update: forward and backward over micro-batches, checks, clipping, the optimiser's step."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vla.training.job import Microbatch
from vla.training.optimiser import Optimisers, trained_parameters

__all__ = ["freeze_unused", "update", "validation_loss"]


def update(
    model: nn.Module,
    optimiser: Optimisers,
    microbatches: Sequence[Microbatch],
    *,
    step: int,
    device: torch.device,
    precision: str = "float32",
    clip: float | None = None,
) -> tuple[float, float]:
    """One update from all micro-batches together; returns (loss, gradient norm before clipping).

    The gradient is that of the mean loss over all samples, however they are divided.
    Raises ValueError, before weights or moments change, if the loss or the norm is not finite.
    """
    optimiser.zero_grad()
    losses = _backward(model, microbatches, device, precision)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    total_norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    *each, norm = torch.stack([*losses, total_norm.to(losses[0].dtype)]).tolist()
    _check_finite(step, each, norm, microbatches)
    optimiser.step()
    sizes = [m.size for m in microbatches]
    return sum(x * n for x, n in zip(each, sizes, strict=True)) / sum(sizes), norm


@torch.no_grad()
def validation_loss(
    model: nn.Module, microbatches: Iterable[Microbatch], device: torch.device, precision: str
) -> float:
    """Mean loss over the samples of all micro-batches; the model stays in the mode it was in."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for microbatch in microbatches:
        total += _loss(model, microbatch, device, precision).item() * microbatch.size
        count += microbatch.size
    model.train(training)
    return total / count


def freeze_unused(
    model: nn.Module, microbatches: Sequence[Microbatch], device: torch.device, precision: str
) -> list[str]:
    """Turn off gradients where none arrives from these micro-batches; returns the names.

    π0, for instance, reads only keys and values of the backbone's last block: its output, its MLP
    and the final norm are dead weight, and the optimiser is better off without them.
    """
    _backward(model, microbatches, device, precision)
    unused = [name for name, p in trained_parameters(model).items() if p.grad is None]
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    model.zero_grad()
    return unused


def _backward(
    model: nn.Module, microbatches: Sequence[Microbatch], device: torch.device, precision: str
) -> list[Tensor]:
    """Add the gradient of the mean loss over all samples; returns each micro-batch's mean loss."""
    total = sum(m.size for m in microbatches)
    losses = []
    for microbatch in microbatches:
        loss = _loss(model, microbatch, device, precision)
        (loss * (microbatch.size / total)).backward()
        losses.append(loss.detach())
    return losses


def _loss(model: nn.Module, microbatch: Microbatch, device: torch.device, precision: str) -> Tensor:
    inputs = [x.to(device) for x in microbatch.inputs]
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return model(*inputs)


def _check_finite(
    step: int, losses: list[float], norm: float, microbatches: Sequence[Microbatch]
) -> None:
    if all(map(math.isfinite, [*losses, norm])):
        return
    wrong = [m for m, x in zip(microbatches, losses, strict=True) if not math.isfinite(x)]
    samples = [sample for m in wrong or microbatches for sample in m.samples]
    what = f"loss {losses}" if wrong else f"gradient norm {norm}"
    raise ValueError(
        f"{what} at step {step} is not finite; the update was not made. It came from the samples "
        f"{samples}. Look at these for NaN or extreme values, or lower optim.lr"
    )
