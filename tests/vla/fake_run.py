"""A run that takes milliseconds: a small network on made-up samples, for the tests of training."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from backbone.weights import save_weights
from vla.config import OptimConfig, RunConfig
from vla.training.job import Job, Microbatch
from vla.training.sampler import VALIDATION_NOISE, draw, sample_indices, shares
from vla.training.world import ALONE, World

SAMPLES, WIDTH = 20, 3
STEEP = 1e3  # a sample of this has a loss like others, and a gradient of NaN


class Network(nn.Module):
    """Two parts with names, and a layer that the loss never reaches."""

    def __init__(self, hidden: int = 8):
        super().__init__()
        self.vision = nn.Linear(WIDTH, hidden)
        self.head = nn.Linear(hidden, 1)
        self.dead = nn.Linear(2, 2)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        wanted = torch.tanh(x.sum(-1, keepdim=True))
        given = self.head(torch.tanh(self.vision(x + 0.01 * noise)))
        chosen = x[:, :1] == STEEP
        steep = (torch.where(chosen, 0 * given, 1.0).sqrt() * chosen).sum()  # 0, its slope 0 · ∞
        return (given - wanted).square().mean() + steep


@dataclass(frozen=True, kw_only=True)
class FakeConfig(RunConfig):
    delay: float = 0.0  # seconds that a batch takes,
    slow_from: int = 0  # from this step on
    poison: int | None = None  # this sample is NaN
    steep: int | None = None  # this one's gradient is
    jump: int | None = None  # the loss of this step is of another order
    die_at: int | None = None  # at this step the last process ends, if it is torchrun's first try
    hidden: int = 8

    def job(self, world: World = ALONE) -> Job:
        data = torch.linspace(-2, 2, SAMPLES * WIDTH).view(SAMPLES, WIDTH)
        if self.poison is not None:
            data[self.poison] = torch.nan
        if self.steep is not None:
            data[self.steep] = STEEP
        model = Network(self.hidden)

        def microbatch(indices: list[int], where: range, purpose: int = 2) -> Microbatch:
            noise, _ = draw(self.seed, where, (WIDTH,), purpose=purpose)
            return Microbatch((data[indices], torch.from_numpy(noise)), len(indices), indices)

        def batch(step: int) -> list[Microbatch]:
            first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
            if step == self.die_at and first_try and world.rank == world.size - 1:
                os._exit(9)
            time.sleep(self.delay if step >= self.slow_from else 0)
            made = [
                microbatch(sample_indices(self.seed, where, SAMPLES), where)
                for where in shares(step, self.batch_size, self.accumulate, world)
            ]
            return made if step != self.jump else [replace(m, inputs=_far(m)) for m in made]

        return Job(
            model=model,
            batch=batch,
            save=lambda model, folder: save_weights(model, folder / "model.safetensors"),
            held_out=lambda: [microbatch([0, 5, 10], range(3), VALIDATION_NOISE)],
            unreached=["dead"],
        )


def _far(microbatch: Microbatch) -> tuple[Tensor, Tensor]:
    x, noise = microbatch.inputs
    return x, 1e5 * noise


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


def fake_file(folder: Path, **fields) -> Path:
    """A config file for `vla train`: the run of `fake_config` in `folder/run`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.py"
    file.write_text(
        "from pathlib import Path\n"
        "from fake_run import fake_config\n"
        f"config = fake_config(Path({str(folder / 'run')!r}), **{fields!r})\n",
        encoding="utf-8",
    )
    return file
