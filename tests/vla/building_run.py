"""Builds a π0 of 201 million parameters and prints what a process held meanwhile, as JSON:
`torchrun … building_run.py FOLDER [INIT]`, a file a process. Resident bytes above the start:
`peak` while building, `end` after it; `shard`: of this process's parameters; `whole`: of all;
`tensor`: of the largest one.
"""

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from action_expert.expert import ActionExpertConfig
from backbone.gemma import GemmaConfig
from backbone.paligemma import PALIGEMMA_TINY
from vla.config import DataConfig, TrainConfig
from vla.model import build as sized
from vla.pi0 import PI0_TINY, Pi0Config
from vla.training.build import build
from vla.training.job import Job
from vla.training.policy_job import policy_start
from vla.training.world import World, joined

LANGUAGE = GemmaConfig(width=1024, depth=12, mlp=4096, heads=8, head_dim=64)
EXPERT = GemmaConfig(width=256, depth=12, mlp=1024, heads=8, head_dim=64)
SIZES = Pi0Config(replace(PALIGEMMA_TINY, language=LANGUAGE), ActionExpertConfig(EXPERT))


class Resident(threading.Thread):
    """Watches what this process holds, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.watching = self.now(), True

    @staticmethod
    def now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def run(self) -> None:
        while self.watching:
            self.peak = max(self.peak, self.now())
            time.sleep(0.002)


def main(folder: Path, init: Path | None = None) -> None:
    torch.set_num_threads(1)
    with joined(torch.device("cpu"), 120) as (world, device):
        made(PI0_TINY, None, world, device)  # what libraries take when they are first used
        world.wait()
        resident = Resident()
        before = resident.peak
        resident.start()
        parameters = list(made(SIZES, init, world, device).parameters())
        end = resident.now()
        resident.watching = False
        resident.join()
        own = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
        told = {
            "peak": resident.peak - before,
            "end": end - before,
            "shard": sum(p.nbytes for p in own),
            "whole": sum(4 * p.numel() for p in parameters),
            "tensor": max(4 * p.numel() for p in parameters),
            "sum": sum(p.detach().double().sum().item() for p in own),
        }
        (folder / f"{world.rank}.json").write_text(json.dumps(told))
        world.wait()


def made(sizes: Pi0Config, init: Path | None, world: World, device: torch.device) -> nn.Module:
    config = TrainConfig(
        output_dir=Path("unused"),
        steps=1,
        batch_size=2,
        model=sizes,
        data=DataConfig(Path("unused")),
        init=init,
    )
    with torch.device("meta"):
        model = sized(sizes)
    start = policy_start(config, model)
    job = Job(model, lambda _: [], lambda *_: None, start=start, unreached=model.unreached)
    return build(job, config, world, device)[0]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
