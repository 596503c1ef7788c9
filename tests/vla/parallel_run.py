"""Trains under torchrun, one variant after the other: `torchrun … parallel_run.py FOLDER VARIANT…`.

A variant is JSON: {"name", "kind": "text" | "actions" | "mixed" | "pairs", "fields": of the config,
"parallel": of its `ParallelConfig`, "resume"}. Its run is FOLDER/name.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backbone.lora import LoRAConfig
from backbone.paligemma import PALIGEMMA_TINY, TextBatch
from backbone.siglip_pair import SigLIPPairConfig
from backbone.weights import save_weights
from vla.batch import Batch
from vla.config import OptimConfig, RunConfig
from vla.pi0 import PI0_TINY, Pi0
from vla.training.faults import LostPeer
from vla.training.job import Job, Microbatch
from vla.training.loop import train
from vla.training.parallel import ParallelConfig
from vla.training.sampler import draw, shares
from vla.training.siglip_job import SigLIPTrainConfig
from vla.training.start import drawn
from vla.training.text_job import TextConfig
from vla.training.world import ALONE, World, joined

CAMERAS = 2
PAIR = SigLIPPairConfig(PALIGEMMA_TINY.vision, 2176, 1, 16)


@dataclass(frozen=True, kw_only=True)
class ActionConfig(RunConfig):
    """π0 on made-up batches: prompts and cameras differ in number from sample to sample, and so
    does the shape of what processes see at a time.

    text: so many examples of text in each update beside them, in as many micro-batches. die_at,
    hang_at: a step at which the second process ends, or stops to do anything. odd: the second
    process has its kinds of micro-batches in another order.
    """

    text: int = 0
    die_at: int | None = None
    hang_at: int | None = None
    odd: bool = False

    def job(self, world: World = ALONE) -> Job:
        with torch.device("meta"):
            model = Pi0(PI0_TINY)
        chunk = (2, PI0_TINY.expert.horizon, PI0_TINY.expert.action_dim)

        def microbatch(where: range) -> Microbatch:
            noise, uniform = draw(self.seed, where, chunk)
            rows = [_sample(self.seed, position) for position in where]
            batch = _trimmed(Batch(*(torch.stack(part) for part in zip(*rows, strict=True))))
            t = torch.from_numpy(uniform).float()
            inputs = (batch, torch.from_numpy(noise), t)
            kind = "action" if self.text else ""
            return Microbatch(inputs, len(where), list(where), kind=kind)

        def text(where: range) -> Microbatch:
            rows = [_text(self.seed, position) for position in where]
            batch = TextBatch(*(torch.stack(part) for part in zip(*rows, strict=True)))
            counts = {"odd": float(sum(k % 2 for k in where)), f"at/{where[0]}": 1.0}
            return Microbatch((batch,), len(where), list(where), counts, kind="text")

        def batch(step: int) -> list[Microbatch]:
            if world.rank == 1 and step == self.die_at:
                os._exit(9)
            if world.rank == 1 and step == self.hang_at:
                time.sleep(1000)
            parts = shares(step, self.batch_size, self.accumulate, world)
            found = [microbatch(where) for where in parts]
            if self.text:
                parts = shares(step, self.text, self.text // 4, world)
                found += [text(where) for where in parts]
            return found[::-1] if self.odd and world.rank == 1 else found

        return Job(
            model,
            batch=batch,
            start=lambda outline: drawn(outline, self.seed),
            unreached=() if self.text else model.unreached,
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
        torch.arange(CAMERAS) <= position // 4 % CAMERAS,
        tokens,
        torch.arange(8) < 3 + position // 4 % 6,
        torch.randn(sizes.state_dim, generator=generator),
        torch.randn(sizes.horizon, sizes.action_dim, generator=generator),
        torch.arange(sizes.horizon) < 2 + position % 3,
    ]


def _trimmed(batch: Batch) -> Batch:
    """Without the cameras and tokens that none of the rows has."""
    cameras, tokens = (int(x.sum(1).max()) for x in (batch.image_valid, batch.token_valid))
    return replace(
        batch,
        images=batch.images[:, :cameras],
        image_valid=batch.image_valid[:, :cameras],
        tokens=batch.tokens[:, :tokens],
        token_valid=batch.token_valid[:, :tokens],
    )


def _text(seed: int, position: int) -> list[torch.Tensor]:
    """An image with text of three to six tokens, or, on every other position, no image at all."""
    images, _, tokens, *_ = _sample(seed, position)
    seen = torch.tensor([position % 2 == 0])
    valid = torch.arange(8) < 3 + position % 4
    return [images[:1], seen, tokens, valid, valid & (torch.arange(8) > 0)]


def config(folder: Path, kind: str, parallel: dict[str, Any], fields: dict[str, Any]) -> RunConfig:
    common: dict[str, Any] = {
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
    if kind in ("actions", "mixed"):
        actions: RunConfig = ActionConfig(**common, text=8 if kind == "mixed" else 0)
        return replace(actions, **fields)
    if kind == "pairs":
        pairs: RunConfig = SigLIPTrainConfig(**common, model=PAIR)
        return replace(pairs, **fields)
    text: RunConfig = TextConfig(**common, model=PALIGEMMA_TINY, seeing=4, ramp=4)
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
        if "lora" in fields:
            fields["lora"] = LoRAConfig(**fields["lora"])
        if "freeze" in fields:
            fields["freeze"] = tuple(fields["freeze"])
        run = config(folder / variant["name"], variant["kind"], variant.get("parallel", {}), fields)
        train(run, resume=variant.get("resume", False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
