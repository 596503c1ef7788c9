"""Muon: momentum whose updates are orthogonal matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from backbone.precision import multiplies_bfloat16

__all__ = ["Muon", "orthogonal"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x³ and x⁵
STEPS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices.

    weights ← (1 − lr · weight_decay) · weights − lr · √max(1, rows / columns) · orthogonal(m), with
    Nesterov's look ahead m of the mean of gradients, `momentum_buffer`.

    As torch.optim.Muon, but for three things. Matrices of one size are worked on together. Where a
    device has no products in bfloat16 they are made in float32: torch's took most of a small
    model's step on such CPUs. `found_inf`, a scalar on the device or None, leaves everything as it
    is where it is 1, as for torch's fused AdamW, so that no host has to wait for it.

    Of a matrix that processes share, each gathers the whole momentum, makes the same update, and
    keeps its part.
    """

    def __init__(self, groups: Iterable[dict], lr: float):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.found_inf: Tensor | None = None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(f"Muon is for matrices, got one of shape {parameter.shape}")
                self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    key = (parameter.shape, parameter.device, parameter.dtype)
                    alike.setdefault(key, []).append(parameter)
            for parameters in alike.values():
                self._update(parameters, group["lr"], group["weight_decay"])

    def _update(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        moments = [self.state[p]["momentum_buffer"] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [m.lerp(g, 1 - MOMENTUM) for m, g in zip(moments, gradients, strict=True)]
        ahead = [_whole(g.lerp(m, MOMENTUM)) for m, g in zip(means, gradients, strict=True)]
        rows, columns = parameters[0].shape
        rate = lr * max(1.0, rows / columns) ** 0.5
        for parameter, moment, mean, update in zip(
            parameters, moments, means, orthogonal(torch.stack(ahead)), strict=True
        ):
            new = parameter * (1 - lr * weight_decay) - rate * _part_like(parameter, update)
            self._put(moment, mean)
            self._put(parameter, new)

    def _put(self, old: Tensor, new: Tensor) -> None:
        old, new = (x.to_local() if isinstance(x, DTensor) else x for x in (old, new))
        if self.found_inf is not None:  # of the losses' device; offloaded weights are elsewhere
            new = torch.where(self.found_inf.to(old.device).bool(), old, new)
        old.copy_(new)


def orthogonal(matrices: Tensor) -> Tensor:
    """[K, R, C], each with singular values near 1 (0.7 to 1.2) and its own singular vectors: five
    steps of a polynomial of them, in bfloat16 where the device multiplies that."""
    low = torch.bfloat16 if multiplies_bfloat16(matrices.device) else torch.float32
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(low)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _whole(matrix: Tensor) -> Tensor:
    return matrix.full_tensor() if isinstance(matrix, DTensor) else matrix


def _part_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """What `parameter` has of a matrix that every process has: nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)
