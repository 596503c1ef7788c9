"""What π0 and π0.5 are trained on: the flow-matching loss over several draws per observation.

Letters: B batch, K draws, H horizon, A action width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from action_expert.expert import ActionExpertConfig
from action_expert.flow import flow_loss, interpolate, sample_time, target_velocity
from vla.batch import Batch


@dataclass(frozen=True)
class Draws:
    """K draws of noise and time per observation; each row stands for one of them.

    x_t: float32 [B·K, H, A], between actions and noise at t [B·K]. target: the velocity to learn,
    float32 [B, K, H, A].
    """

    x_t: Tensor
    t: Tensor
    target: Tensor

    @property
    def count(self) -> int:
        """Draws per observation, K; they share one reading of the prefix."""
        return self.target.shape[1]


def draw(batch: Batch, noise: Tensor | None, t: Tensor | None) -> Draws:
    """Noise float32 [B, K, H, A] and t float32 [B, K], drawn here with K = 1 when not given.

    Raises ValueError if the batch has no actions.
    """
    if batch.actions is None:
        raise ValueError("a loss needs actions: give Batch.actions and Batch.action_valid")
    actions = batch.actions[:, None]
    if noise is None:
        noise = torch.randn_like(actions)
    if t is None:
        t = sample_time(torch.rand(noise.shape[:2], device=noise.device, dtype=noise.dtype))
    x_t = interpolate(actions, noise, t)
    return Draws(x_t.flatten(0, 1), t.flatten(), target_velocity(actions, noise))


def loss(velocity: Tensor, draws: Draws, batch: Batch) -> Tensor:
    """A scalar: the mean over draws of `flow_loss`, of velocities float32 [B·K, H, A].

    Raises ValueError if the batch doesn't say which action steps are real.
    """
    if batch.action_valid is None:
        raise ValueError("a loss needs actions: give Batch.actions and Batch.action_valid")
    dims = None if batch.action_dim_valid is None else batch.action_dim_valid[:, None]
    velocity = velocity.unflatten(0, (-1, draws.count))
    return flow_loss(velocity, draws.target, batch.action_valid[:, None], dims)


def starting_noise(batch: Batch, expert: ActionExpertConfig) -> Tensor:
    """Noise to integrate from, float32 [B, H, A], of torch's global generator."""
    shape = (batch.size, expert.horizon, expert.action_dim)
    return torch.randn(shape, device=batch.tokens.device)
