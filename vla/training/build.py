"""From a job's outline to the model that a process trains, in one fixed order."""

from __future__ import annotations

import torch
from torch import nn

from backbone.lora import add_lora
from vla.config import RunConfig
from vla.training.job import Job
from vla.training.optimiser import freeze
from vla.training.parallel import outline, parallelise
from vla.training.start import begin
from vla.training.world import World

__all__ = ["build"]


def build(
    job: Job, config: RunConfig, world: World, device: torch.device
) -> tuple[nn.Module, nn.Module]:
    """The model of `job` as this process trains it, and its outline: all of it but the numbers, and
    without what comes after freezing.

    Freezing and adapters → recomputation → compilation → sharding → memory and numbers. Nothing is
    on `device` before it is sharded, so a process never holds more than its part of the model and
    one tensor; a job whose model has its numbers already is moved there whole.
    """
    model = job.model.train()
    freeze(model, config.freeze)
    if config.lora is not None:
        add_lora(model, config.lora)
    freeze(model, job.unreached)
    if job.start is None:
        model.to(device)
    empty = outline(model)
    parallelise(model, config.parallel, world, device, config.precision)
    if job.start is not None:
        home = torch.device("cpu") if config.parallel.offload else device
        begin(model, job.start(empty), home)
    return model, empty
