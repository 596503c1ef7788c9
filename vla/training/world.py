"""The processes of a run, as torchrun starts them; one that was started alone is a run of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

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
        return World(self.rank, self.size, dist.new_group(backend="gloo"))

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

    def any(self, flag: bool) -> bool:
        """Whether it is true anywhere."""
        return any(row[0] for row in self.gather([float(flag)]))

    def from_first(self, value: int) -> int:
        """The first process's `value`."""
        return int(self.gather([value])[0][0])

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier(group=self.group)


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
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield World(dist.get_rank(), size), device
    except RuntimeError as error:
        # NCCL's errors have a type of their own; gloo's are told by their text alone
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise LostPeer(
                f"process {dist.get_rank()} of {size} lost another one: {error}. Start again with "
                "--resume; see what the others printed for the cause"
            ) from error
        raise
    finally:
        dist.destroy_process_group()
