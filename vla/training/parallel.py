"""How a model is spread over processes, applied from outside it: it knows nothing of this.

The order is fixed: recompute activations → compile → shard, block by block and then the root.
FSDP2 (`fully_shard`) does the sharding, on a mesh of copies × shards: one shard a copy is plain
data parallelism, one copy is full sharding, and what lies between is hybrid.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
)

from backbone.precision import resolved
from vla.training.world import World

__all__ = [
    "ParallelConfig",
    "blocks",
    "outline",
    "parallelise",
    "recompute",
    "reduce_next",
    "reshard",
]

aten = torch.ops.aten
PRODUCTS = [
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]
METHODS = ("prefill", "sample_actions", "decode", "logits")  # called on a model beside `forward`


@dataclass(frozen=True)
class ParallelConfig:
    """shards: processes that share one copy of weights, gradients and moments; None: all of them;
    1: each has a copy of its own (data parallelism). It divides the number of processes.
    recompute: activations of every so-manieth block are computed again in the backward pass rather
    than kept: 1, all of them; None, none.
    keep_products: what those blocks keep all the same are the results of matrix products and of
    attention, which are dear to compute; norms, activations and rotations are computed again.
    compile: blocks, each by itself, with `torch.compile`.
    reshard: free a block's gathered weights after its forward pass and gather them again for the
    backward; False trades memory for that communication.
    offload: keep shards, gradients and moments in the host's memory.
    wide_reduction: gradients are summed in float32 where the model computes in bfloat16.
    reduce_once: with several micro-batches, gradients are summed over processes in the last one of
    its kind alone; until then each process holds those of the whole model. False: after each one,
    and a process never holds more than its shards.
    timeout: seconds that a process waits for another one.
    """

    shards: int | None = None
    recompute: int | None = None
    keep_products: bool = False
    compile: bool = False
    reshard: bool = True
    offload: bool = False
    wide_reduction: bool = True
    reduce_once: bool = True
    timeout: float = 600.0

    def __post_init__(self):
        for name in ("shards", "recompute"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"parallel.{name} is {value}; it must be 1 or more, or None")
        if self.keep_products and self.recompute is None:
            raise ValueError(
                "parallel.keep_products says what recomputed blocks keep, but parallel.recompute "
                "is None; set it to 1 for all blocks"
            )
        if self.timeout <= 0:
            raise ValueError(f"parallel.timeout is {self.timeout}; give seconds above 0")


def parallelise(
    model: nn.Module, config: ParallelConfig, world: World, device: torch.device, precision: str
) -> nn.Module:
    """Spread `model`, in place, over the processes of `world`; returns it.

    In a world of one only activations and compilation change, and `offload` is refused. Freeze
    parameters before and make the optimiser after: parameters become DTensors. precision: as in
    `RunConfig`; shards are float32.
    Raises ValueError if `config.shards` does not divide the world.
    """
    found = list(blocks(model))
    if config.recompute is not None:
        for block in found[:: config.recompute]:
            recompute(block, config.keep_products)
    if config.compile:
        for block in found:
            block.compile()
    if world.size == 1:
        if config.offload:
            raise ValueError("parallel.offload is for several processes; start them with torchrun")
        return model
    shards = world.size if config.shards is None else config.shards
    if world.size % shards:
        raise ValueError(
            f"parallel.shards is {shards}, which does not divide {world.size} processes; "
            "take a divisor, or None for all"
        )
    mesh = init_device_mesh(
        device.type, (world.size // shards, shards), mesh_dim_names=("copies", "shards")
    )
    half = torch.bfloat16 if resolved(precision, device) == "bfloat16" else None
    policy = MixedPrecisionPolicy(
        param_dtype=half,
        reduce_dtype=torch.float32 if half and config.wide_reduction else half,
        cast_forward_inputs=False,
    )
    offload = OffloadPolicy()
    if config.offload:
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    for module in (*found, model):
        fully_shard(
            module,
            mesh=mesh if shards < world.size else mesh["shards"],
            reshard_after_forward=config.reshard and module is not model,
            mp_policy=policy,
            offload_policy=offload,
        )
    for name in METHODS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    return model


def reduce_next(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums gradients over processes; else each adds its own up."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def reshard(model: nn.Module) -> None:
    """Free the gathered weights that a forward pass without a backward one has left: the next pass
    would take them as they are, whatever has become of the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks of a model: what stands in a `ModuleList` called `blocks`."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.ModuleList):
            yield from module


def recompute(block: nn.Module, keep_products: bool = False) -> None:
    """Let `block` compute its activations again in the backward pass instead of keeping them, but
    for the results of matrix products and attention with `keep_products`."""
    forward = block.forward

    def forgetful(*args, **kwargs):
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    def keeping(*args, **kwargs):  # made here, or `torch.compile` couldn't look into it
        contexts = partial(create_selective_checkpoint_contexts, PRODUCTS)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    block.forward = keeping if keep_products else forgetful


def outline(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters are on the meta device: all of it but the numbers."""
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)
