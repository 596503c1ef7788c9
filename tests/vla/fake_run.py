"""A run that takes milliseconds: a small network on made-up samples, for the tests of training."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from backbone.weights import save_weights
from vla.config import OptimConfig, RunConfig
from vla.training.job import Job, Microbatch
from vla.training.sampler import VALIDATION_NOISE, draw, sample_indices, shares
from vla.training.world import ALONE, World

SAMPLES, WIDTH = 20, 3


class Network(nn.Module):
    """Two parts with names, and a layer that the loss never reaches."""

    def __init__(self):
        super().__init__()
        self.vision = nn.Linear(WIDTH, 8)
        self.head = nn.Linear(8, 1)
        self.dead = nn.Linear(2, 2)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        wanted = torch.tanh(x.sum(-1, keepdim=True))
        return (self.head(torch.tanh(self.vision(x + 0.01 * noise))) - wanted).square().mean()


@dataclass(frozen=True, kw_only=True)
class FakeConfig(RunConfig):
    delay: float = 0.0  # seconds that a batch takes
    poison: int | None = None  # this sample is NaN

    def job(self, world: World = ALONE) -> Job:
        data = torch.linspace(-2, 2, SAMPLES * WIDTH).view(SAMPLES, WIDTH)
        if self.poison is not None:
            data[self.poison] = torch.nan
        model = Network()

        def microbatch(indices: list[int], where: range, purpose: int = 2) -> Microbatch:
            noise, _ = draw(self.seed, where, (WIDTH,), purpose=purpose)
            return Microbatch((data[indices], torch.from_numpy(noise)), len(indices), indices)

        def batch(step: int) -> list[Microbatch]:
            time.sleep(self.delay)
            return [
                microbatch(sample_indices(self.seed, where, SAMPLES), where)
                for where in shares(step, self.batch_size, self.accumulate, world)
            ]

        return Job(
            model=model,
            batch=batch,
            save=lambda model, folder: save_weights(model, folder / "model.safetensors"),
            held_out=lambda: [microbatch([0, 5, 10], range(3), VALIDATION_NOISE)],
            unreached=["dead"],
        )


def fake_config(output_dir: Path, **fields) -> FakeConfig:
    """A run of 20 steps that saves every 5 and reports every 2, changed by `fields`."""
    values = {
        "output_dir": output_dir,
        "steps": 20,
        "batch_size": 6,
        "optim": OptimConfig(lr=2e-2, warmup=3, end_lr=1e-3),
        "ema": 0.9,
        "log_every": 2,
        "eval_every": 4,
        "save_every": 5,
        "tensorboard": False,
        "device": "cpu",
    }
    return FakeConfig(**values | fields)
