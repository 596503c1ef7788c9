"""Flow matching between noise and actions. The only file that knows which way time runs.

openpi's convention, baked into released weights: t = 1 is noise, t = 0 is data,

    x_t = t · noise + (1 − t) · actions        velocity = dx_t/dt = noise − actions

and sampling integrates from 1 to 0. (The π0 paper, arXiv 2410.24164 appendix B, runs τ = 1 − t.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

# t = 0.001 + 0.999 · Beta(1.5, 1): later noise is drawn more often; mean 0.6004.
TIME_ALPHA = 1.5
TIME_MIN = 0.001


def sample_time(uniform: Tensor) -> Tensor:
    """Map uniform draws in [0, 1) to training times in [0.001, 1], same shape.

    Beta(α, 1) has the distribution function xᵅ, so its inverse is a power; no rejection needed.
    """
    return TIME_MIN + (1 - TIME_MIN) * uniform ** (1 / TIME_ALPHA)


def interpolate(actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t of actions and noise, float [..., H, A] each, at times t [...]."""
    t = t[..., None, None]
    return t * noise + (1 - t) * actions


def target_velocity(actions: Tensor, noise: Tensor) -> Tensor:
    """What the network learns to say at every x_t between them, float [..., H, A]."""
    return noise - actions


def flow_loss(
    velocity: Tensor, target: Tensor, valid: Tensor, dims: Tensor | None = None
) -> Tensor:
    """Squared error, averaged over a row's real action steps, then over rows; a scalar.

    velocity, target: float [..., H, A]. valid: bool [..., H], False for steps past the episode's
    end, which openpi and LeRobot count in. dims: bool [..., A], the action dimensions that count,
    as LeRobot leaves out the padded ones; None: all, as openpi. Rows without a real step count as
    zero.
    """
    error = (velocity - target).square()
    if dims is None:
        error = error.mean(-1) * valid
    else:
        dims = dims[..., None, :]
        error = (error * dims).sum(-1) / dims.sum(-1) * valid
    return (error.sum(-1) / valid.sum(-1).clamp(min=1)).mean()


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Follow the field from noise to actions in equal Euler steps.

    velocity: maps (x [B, H, A], t [B]) to [B, H, A]; it is asked at t = 1, 1 − 1/steps, …, 1/steps.
    noise: float [B, H, A]. Returns float [B, H, A]. Raises ValueError if `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"flow integration needs at least 1 step, got {steps}")
    x = noise
    for k in range(steps):
        t = torch.full(x.shape[:1], 1 - k / steps, dtype=x.dtype, device=x.device)
        x = x - velocity(x, t) / steps
    return x
