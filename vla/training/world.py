"""The processes of a run, as torchrun starts them; one that was started alone is a run of one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from vla.training.faults import LostPeer

__all__ = ["ALONE", "World", "joined"]


@dataclass(frozen=True)
class World:
    """rank: of this process, from 0. size: how many there are. group: what their messages go
    through; None: torch's default one.

    The methods are collective: all processes call them in the same order. In a world of one they
    hand back what they are given.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def apart(self) -> World:
        """The same processes, on the host, with messages of their own: for a second thread, whose
        messages would be taken for those of the first."""
        if self.size == 1:
            return self
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup), "every process is in the new group"
        return World(self.rank, self.size, group)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Everybody's `values`, equally many, by rank; float64 on the host."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self.group)
        return [row.tolist() for row in every]

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum of each number over all processes, which may have other names each."""
        if self.size == 1:
            return dict(values)
        mine = json.dumps(dict(values)).encode()
        lengths = [int(row[0]) for row in self.gather([len(mine)])]
        padded = torch.frombuffer(bytearray(mine.ljust(max(lengths))), dtype=torch.uint8)
        every = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(every, padded, group=self.group)
        sums: Counter[str] = Counter()
        for row in every:
            sums.update(json.loads(bytes(row.tolist())))
        return dict(sums)

    def together(self, rows: Tensor) -> tuple[Tensor, int]:
        """Everybody's `rows` [B, …], equally many and by rank, [size · B, …], and where this
        process's begin. Gradients come back to the process that the rows are of."""
        if self.size == 1:
            return rows, 0
        return _Together.apply(rows, self), self.rank * len(rows)  # pyright: ignore

    def any(self, flag: bool) -> bool:
        """Whether it is true anywhere."""
        return any(row[0] for row in self.gather([float(flag)]))

    def most(self, value: Tensor) -> Tensor:
        """The largest `value` of all, each an element, wherever these are: nobody's host waits."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return value

    def from_first(self, value: int) -> int:
        """The first process's `value`."""
        return int(self.gather([value])[0][0])

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier(group=self.group)


class _Together(torch.autograd.Function):
    """Torch's own `all_gather` with a gradient needs messages that gloo doesn't have."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world = world
        every = [torch.empty_like(rows) for _ in range(world.size)]
        dist.all_gather(every, rows.contiguous(), group=world.group)
        return torch.cat(every)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.world.group)
        return total.chunk(ctx.world.size)[ctx.world.rank], None


ALONE = World()


@contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[tuple[World, torch.device]]:
    """Inside the block this process belongs to the world that torchrun announced, if it did.

    device: "cuda" becomes this process's own card. timeout: seconds that a process waits for
    another one before it counts as lost.
    Messages go through gloo on the host, and through NCCL between cards.
    Raises LostPeer where another process ended or hangs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device
        return
    if dist.is_initialized():  # whoever did so ends it; torch can't safely begin anew afterwards
        yield World(dist.get_rank(), size), device
        return
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    rank = int(os.environ["RANK"])
    try:
        _meet(backend, timedelta(seconds=timeout))
        yield World(rank, size), device
    except RuntimeError as error:
        # NCCL's errors have a type of their own; gloo's are told by their text alone
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise LostPeer(
                f"process {rank} of {size} lost another one: {error}. Start again with "
                "--resume; see what the others printed for the cause"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(backend: str, timeout: timedelta) -> None:
    """Begin torch's default group. What torchrun keeps over its restarts would tell the processes
    of the next try where those of the last one were, so that each try has names of its own."""
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    tried = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"try-{tried}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
