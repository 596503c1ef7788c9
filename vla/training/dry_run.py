"""A stage without its weights: builds the model, shards it over made-up processes, counts FLOPs.

Tensors have shapes and no memory (torch's fake tensors), and messages go nowhere (its "fake"
backend), so a 3B model over 256 processes takes seconds on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from backbone.paligemma import PaliGemma, PaliGemmaConfig, TextBatch
from backbone.precision import autocast
from vla.planning.work import Work
from vla.training.optimiser import freeze, make_optimiser
from vla.training.parallel import parallelise
from vla.training.sampler import shares
from vla.training.stage_job import StageConfig
from vla.training.world import World

__all__ = ["DryRun", "dry_run"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class DryRun:
    """parameters: of the model. shard: elements of the first process's part of them. trained: of
    all parameters, those that learn. examples: of a process in one micro-batch. flops: of an
    example's forward and backward pass, a multiply-add being two, recomputed activations included.
    """

    parameters: int
    shard: int
    trained: int
    processes: int
    examples: int
    flops: float

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.trained:,} of them trained, over "
            f"{self.processes} processes: {self.shard:,} on the first. {self.examples} examples a "
            f"process at a time, {self.flops / 1e12:.2f} TFLOP each"
        )


def dry_run(config: StageConfig, processes: int = 256) -> DryRun:
    """Build, freeze, shard, make the optimiser, run forward and backward once, on nothing.

    Text is as long as `config.text_length` (128 tokens where that is None), with one image.
    Raises ValueError where a real run of so many processes would: for a batch or shards that don't
    divide. Not to be called inside a run: it makes torch's process group and ends it.
    """
    assert not dist.is_initialized(), "a dry run makes a process group of its own"
    world = World(0, processes)
    examples = len(shares(0, config.batch_size, config.accumulate, world)[0])
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with fake:
            model = PaliGemma(config.model)
        parameters = sum(p.numel() for p in model.parameters())
        freeze(model, config.freeze)
        parallelise(model, config.parallel, world, CPU, config.precision)
        with fake:
            optimiser = make_optimiser(model, config.optim)
            flops = _flops(model, _batch(config.model, config.text_length or 128, examples), config)
        trained = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
        shard = sum(_local(p).numel() for p in model.parameters())
    finally:
        dist.destroy_process_group()
    return DryRun(parameters, shard, trained, processes, examples, flops / examples)


def _flops(model: PaliGemma, batch: TextBatch, config: StageConfig) -> float:
    with Work() as work:
        with autocast(CPU, config.precision):
            loss = model(batch)
        loss.backward()
    return work.flops


def _batch(model: PaliGemmaConfig, length: int, examples: int) -> TextBatch:
    side, text = model.resolution, (examples, length)
    return TextBatch(
        images=torch.zeros(examples, 1, 3, side, side, dtype=torch.uint8),
        image_valid=torch.ones(examples, 1, dtype=torch.bool),
        tokens=torch.zeros(text, dtype=torch.int64),
        token_valid=torch.ones(text, dtype=torch.bool),
        suffix=torch.ones(text, dtype=torch.bool),
    )


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
