"""What parameters begin with: numbers drawn by their name, or read from files, one by one.

A model is built without memory and spread over its processes first. Then each of them goes through
the same stream of whole tensors and keeps its own part of each, so that none ever holds more than
its shards and one tensor. Drawn numbers are functions of (seed, name), the same for any number of
processes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard

from backbone.sources.headers import WEIGHTS
from backbone.sources.read import read
from backbone.weights import weights_for

__all__ = ["Start", "begin", "drawn", "encoder", "own_part", "plain"]

type Start = Callable[[nn.Module], Iterable[tuple[str, Tensor]]]
"""The tensors that a model's parameters begin with, each once, by their `plain` names. It is given
the model on the meta device, with the adapters that it may have got since it was built."""


def plain(name: str) -> str:
    """Of a parameter, the name that it has without an adapter around its layer."""
    return name.replace(".base_layer.", ".")


def begin(model: nn.Module, tensors: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Give the parameters of `model`, on the meta device until now and sharded or not, memory on
    `device` and these values. Each tensor may be used until the next is asked for."""
    assert not list(model.buffers()), "buffers would be left without values"
    model.to_empty(device=device)
    left = {plain(name): parameter for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, tensor in tensors:
            parameter = left.pop(name)
            assert tensor.shape == parameter.shape, f"{name}: {tensor.shape}, {parameter.shape}"
            if isinstance(parameter, DTensor):
                parameter.to_local().copy_(own_part(tensor, parameter))
            else:
                parameter.copy_(tensor)
    assert not left, f"{', '.join(left)} got no value"


def own_part(tensor: Tensor, like: DTensor) -> Tensor:
    """This process's part, a view, of the whole `tensor`, divided as `like` is."""
    coordinate = like.device_mesh.get_coordinate()
    assert coordinate is not None, "a process outside of the mesh has no part"
    for dim, (placement, at) in enumerate(zip(like.placements, coordinate, strict=True)):
        if isinstance(placement, Shard):
            parts = tensor.chunk(like.device_mesh.size(dim), placement.dim)
            empty = tensor.narrow(placement.dim, 0, 0)
            tensor = parts[at] if at < len(parts) else empty
    return tensor


def drawn(
    outline: nn.Module, seed: int, without: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """The random start of every parameter of a model on the meta device, in float32 on the CPU, but
    of those in `without`, `plain` names. One module's own parameters are held at a time.

    Each module that has parameters of its own says in `reset_parameters` how they start.
    """
    for module_name, module in copy.deepcopy(outline).named_modules():
        own = {
            name: plain(f"{module_name}.{name}".removeprefix("."))
            for name, _ in module.named_parameters(recurse=False)
        }
        if all(name in without for name in own.values()):
            continue
        reset = getattr(module, "reset_parameters", None)
        assert callable(reset), f"{type(module).__name__} doesn't say how it starts"
        module.to_empty(device="cpu", recurse=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_number(seed, min(own.values())))
            reset()
        for name, full in own.items():
            if full not in without:
                yield full, module.get_parameter(name).detach()
        module.to_empty(device="meta", recurse=False)  # its numbers go


def encoder(
    vision: nn.Module, folder: Path | None
) -> tuple[frozenset[str], Callable[[], Iterator[tuple[str, Tensor]]]]:
    """Names, `vision.…`, and what reads the tensors, of the image encoder in a folder that
    `VisionConfig` left; none for None. Raises as `weights_for` does if `vision` is another."""
    if folder is None:
        return frozenset(), lambda: iter(())
    weights = weights_for(vision, folder / WEIGHTS)
    names = frozenset(f"vision.{name}" for name in weights.places)
    return names, lambda: ((f"vision.{name}", tensor) for name, tensor in read(weights))


def _number(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
