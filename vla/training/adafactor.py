"""Adafactor as big_vision runs it: Adam with a second moment of rows and columns."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

__all__ = ["Adafactor"]

FACTORED_FROM = 32  # shortest of the two longest sides of a tensor whose second moment is factored
EPSILON = 1e-30  # added to squared gradients


class Adafactor(torch.optim.Optimizer):
    """Decoupled weight decay as AdamW's, and these moments.

    The second moment of a tensor is kept as its means over its longest and second longest side,
    where both have at least 32 elements; in full elsewhere. Its decay after t updates is
    min(beta2_cap, 1 − t^−0.8). The first moment is an average of scaled gradients, from 0 and
    without correction, held in `momentum_dtype`; the update is made from it before it is rounded.
    There are no relative step sizes and no clipping of updates.

    The state of every parameter is there from the start, so that it can be filled from a
    checkpoint. Parameters may be sharded; rows and columns are then copied to all processes.

    Sources: big_vision `optax.py: scale_by_adafactor`; Shazeer and Stern, arXiv 1804.04235;
    Zhai et al., arXiv 2106.04560, section 3.4. `torch.optim.Adafactor` is the original, with
    relative steps.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.9,
        beta2_cap: float = 0.999,
        weight_decay: float = 0.0,
        momentum_dtype: torch.dtype = torch.bfloat16,
    ):
        defaults = {"lr": lr, "momentum": momentum, "beta2_cap": beta2_cap}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                zeros = torch.zeros_like(parameter)
                second = {"exp_avg_sq": zeros}
                if (sides := factored_sides(parameter)) is not None:
                    names = ("row", "column")
                    second = {n: _mean(zeros, s) for n, s in zip(names, sides, strict=True)}
                self.state[parameter] = {
                    "step": torch.zeros(()),  # read by the host at every step
                    "exp_avg": torch.zeros_like(parameter, dtype=momentum_dtype),
                    **second,
                }

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update from the gradients; parameters without one stay as they are."""
        assert closure is None, "no closure is called"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], group)


def factored_sides(tensor: Tensor) -> tuple[int, int] | None:
    """The longest and second longest side (the later ones, where some are equal), or None."""
    order = sorted(range(tensor.dim()), key=lambda side: tensor.shape[side])
    if len(order) < 2 or tensor.shape[order[-2]] < FACTORED_FROM:
        return None
    return order[-1], order[-2]


def _update(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict) -> None:
    state["step"] += 1
    decay = min(group["beta2_cap"], 1 - float(state["step"]) ** -0.8)
    square = gradient.square() + EPSILON
    if (sides := factored_sides(parameter)) is None:
        state["exp_avg_sq"].lerp_(square, 1 - decay)
        scaled = gradient * state["exp_avg_sq"].rsqrt()
    else:
        row, column = state["row"], state["column"]
        for mean, side in zip((row, column), sides, strict=True):
            mean.lerp_(_mean(square, side), 1 - decay)
        # of the outer product of both, divided by the mean that each of them counts
        scaled = gradient * (row / row.mean(sides[1], keepdim=True)).rsqrt() * column.rsqrt()
    # In JAX a number takes the dtype of the array that it multiplies: momentum is rounded as well.
    momentum = torch.tensor(group["momentum"], dtype=state["exp_avg"].dtype)
    average = state["exp_avg"] * momentum + (1 - group["momentum"]) * scaled
    state["exp_avg"].copy_(average)
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(average, alpha=-group["lr"])


def _mean(x: Tensor, side: int) -> Tensor:
    """Mean over one side, which stays with length 1; whole in every process."""
    mean = x.mean(side, keepdim=True)
    if isinstance(mean, DTensor):
        return mean.redistribute(placements=[Replicate()] * mean.device_mesh.ndim)
    return mean
