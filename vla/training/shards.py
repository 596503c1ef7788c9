"""A checkpoint's tensors on disk: one safetensors file, or a folder of shards, one a process.

Sharded ones go through `torch.distributed.checkpoint` with its safetensors writer and reader, whose
headers say which part of a tensor a file holds, so that any number of processes can read them.
Neither form holds pickled objects.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor, distribute_tensor

from backbone.weights import save_tensors
from vla.training.world import ALONE, World

__all__ = ["kinds", "read_into", "save", "staged", "whole", "written"]

Kind = tuple[str, tuple[int, ...]]  # dtype, such as "float32", and global shape


def save(tensors: Mapping[str, Tensor], folder: Path, name: str, world: World) -> None:
    """Write `folder/<name>.safetensors`, or `folder/<name>/` where there are several processes.

    Collective. Raises what the disk or safetensors raise, on every process that saw it.
    """
    if world.size == 1:
        save_tensors(tensors, folder / f"{name}.safetensors")
        return
    state_dict_saver.save(
        dict(tensors),
        storage_writer=HuggingFaceStorageWriter(str(folder / name), save_distributed=True),
        process_group=world.group,
    )


def written(folder: Path, name: str, world: World) -> list[Path]:
    """The files that `save` made in this process."""
    if world.size == 1:
        return [folder / f"{name}.safetensors"]
    return sorted((folder / name).glob(f"shard-{world.rank + 1:05d}-*"))


def staged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host that training doesn't change, each process's of its own parts."""
    return BlockingAsyncStager(cache_staged_state_dict=False).stage(dict(tensors))


def whole(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of what `save` wrote, in whatever number of processes, put together here."""
    own = {
        key: torch.empty(shape, dtype=getattr(torch, kind))
        for key, (kind, shape) in kinds(folder, name).items()
    }
    read_into(own, folder, name, ALONE)
    return own


def kinds(folder: Path, name: str) -> dict[str, Kind]:
    """What is there, from headers alone."""
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        saved = HuggingFaceStorageReader(str(folder / name)).read_metadata().state_dict_metadata
        return {
            key: (str(value.properties.dtype).removeprefix("torch."), tuple(value.size))
            for key, value in saved.items()
            if isinstance(value, TensorStorageMetadata)
        }
    with safe_open(file, framework="pt") as opened:
        tensors = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
        return {
            key: (DTYPES[part.get_dtype()], tuple(part.get_shape()))
            for key, part in tensors.items()
        }


def read_into(own: Mapping[str, Tensor], folder: Path, name: str, world: World) -> None:
    """Copy what `save` wrote, in whatever number of processes, into the tensors of `own`.

    Names, shapes and dtypes must be the same (`kinds`). Each process reads its own parts alone.
    """
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is meant to be
        state_dict_loader.load(
            dict(own),
            storage_reader=HuggingFaceStorageReader(str(folder / name)),
            no_dist=world.size == 1,
        )
        return
    with safe_open(file, framework="pt") as opened:
        for key, tensor in own.items():
            saved = opened.get_tensor(key)
            if isinstance(tensor, DTensor):
                mesh, placements = tensor.device_mesh, tensor.placements
                saved = distribute_tensor(
                    saved.to(tensor.device), mesh, placements, src_data_rank=None
                )
            tensor.copy_(saved)


DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
