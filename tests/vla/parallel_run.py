"""Trains under torchrun, one variant after the other: `torchrun … parallel_run.py FOLDER VARIANT…`.

A variant is JSON: {"name", "kind": "text" | "actions", "fields": of the config, "parallel": of its
`ParallelConfig`, "resume"}. Its run is FOLDER/name.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from backbone.paligemma import PALIGEMMA_TINY
from backbone.weights import save_weights
from vla.batch import Batch
from vla.config import OptimConfig, RunConfig
from vla.pi0 import PI0_TINY, Pi0
from vla.training.faults import LostPeer
from vla.training.job import Job, Microbatch
from vla.training.loop import train
from vla.training.parallel import ParallelConfig
from vla.training.sampler import draw, shares
from vla.training.text_job import TextConfig
from vla.training.world import ALONE, World, joined

CAMERAS = 2


@dataclass(frozen=True, kw_only=True)
class ActionConfig(RunConfig):
    """π0 on made-up batches: prompts and cameras differ in number from sample to sample.

    die_at, hang_at: a step at which the second process ends, or stops to do anything.
    """

    die_at: int | None = None
    hang_at: int | None = None

    def job(self, world: World = ALONE) -> Job:
        model = Pi0(PI0_TINY)
        chunk = (2, PI0_TINY.expert.horizon, PI0_TINY.expert.action_dim)

        def microbatch(where: range) -> Microbatch:
            noise, uniform = draw(self.seed, where, chunk)
            rows = [_sample(self.seed, position) for position in where]
            batch = Batch(*(torch.stack(part) for part in zip(*rows, strict=True)))
            t = torch.from_numpy(uniform).float()
            return Microbatch((batch, torch.from_numpy(noise), t), len(where), list(where))

        def batch(step: int) -> list[Microbatch]:
            if world.rank == 1 and step == self.die_at:
                os._exit(9)
            if world.rank == 1 and step == self.hang_at:
                time.sleep(1000)
            parts = shares(step, self.batch_size, self.accumulate, world)
            return [microbatch(where) for where in parts]

        return Job(
            model,
            batch=batch,
            save=lambda model, folder: save_weights(model, folder / "model.safetensors"),
            held_out=lambda: [microbatch(range(k, k + 2)) for k in (900, 902, 904)],
        )


def _sample(seed: int, position: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + position)
    sizes, size = PI0_TINY.expert, PI0_TINY.backbone.vision.resolution
    shape = (CAMERAS, 3, size, size)
    tokens = torch.randint(4, 200, (8,), generator=generator)
    return [
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        torch.arange(CAMERAS) <= position % CAMERAS,
        tokens,
        torch.arange(8) < 3 + position % 6,
        torch.randn(sizes.state_dim, generator=generator),
        torch.randn(sizes.horizon, sizes.action_dim, generator=generator),
        torch.arange(sizes.horizon) < 2 + position % 3,
    ]


def config(folder: Path, kind: str, parallel: dict, fields: dict) -> RunConfig:
    common = {
        "output_dir": folder,
        "steps": 20,
        "batch_size": 8,
        "optim": OptimConfig(lr=1e-3, warmup=3, end_lr=1e-4),
        "ema": 0.9,
        "log_every": 1,
        "eval_every": 10,
        "eval_batches": 3,
        "save_every": 10,
        "tensorboard": False,
        "device": "cpu",
        "parallel": ParallelConfig(**parallel),
    }
    if kind == "actions":
        return ActionConfig(**common | fields)
    text = TextConfig(**common, model=PALIGEMMA_TINY, seeing=4, ramp=4)
    return replace(text, **fields)


def main(folder: Path, *variants: str) -> None:
    torch.set_num_threads(1)
    timeout = json.loads(variants[0]).get("parallel", {}).get("timeout", 300)
    try:
        with joined(torch.device("cpu"), timeout):
            run_all(folder, variants)
    except LostPeer as error:
        print(error, file=sys.stderr)
        os._exit(error.exit_status)  # gloo's threads may still wait for the one that hangs


def run_all(folder: Path, variants: Sequence[str]) -> None:
    for variant in map(json.loads, variants):
        fields = dict(variant.get("fields", {}))
        if "optim" in fields:
            fields["optim"] = OptimConfig(**fields["optim"])
        if "freeze" in fields:
            fields["freeze"] = tuple(fields["freeze"])
        run = config(folder / variant["name"], variant["kind"], variant.get("parallel", {}), fields)
        train(run, resume=variant.get("resume", False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
