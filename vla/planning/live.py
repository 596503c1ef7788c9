"""How many bytes of tensors are alive while something runs, for every batch size at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Envelope", "Live"]


@dataclass(frozen=True)
class Envelope:
    """Moments of a run, each (bytes whatever the batch is, bytes per sample)."""

    moments: tuple[tuple[int, float], ...]

    def peak(self, batch: int) -> float:
        """Bytes at the worst moment with so many samples."""
        return max(fixed + batch * each for fixed, each in self.moments)


class Live(TorchDispatchMode):
    """Inside the block, storages that operations make are counted until they are freed.

    batch: samples that the block runs on. It has to divide the size of everything that grows with
    the batch and of nothing else: a large prime. Storages from before the block don't count.
    """

    def __init__(self, batch: int):
        super().__init__()
        self._batch = batch
        self._fixed = self._grown = 0
        self._known: dict[int, weakref.ref] = {}
        self._moments: set[tuple[int, int]] = {(0, 0)}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave these out: they are there before the block."""
        for tensor in tensors:
            self._watch(tensor, counted=False)

    @property
    def envelope(self) -> Envelope:
        """The moments that can be the worst one at some batch size."""
        best, most = [], -1
        for fixed, grown in sorted(self._moments, reverse=True):
            if grown > most:  # none with more fixed bytes has as many that grow
                best.append((fixed, grown / self._batch))
                most = grown
        return Envelope(tuple(best))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        grew = [self._watch(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(grew):
            self._moments.add((self._fixed, self._grown))
        return out

    def _watch(self, tensor: Tensor, counted: bool = True) -> bool:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        size = storage.nbytes() if counted else 0
        grows = size % self._batch == 0
        self._change(size, grows)

        def freed(_: weakref.ref) -> None:
            del self._known[key]
            self._change(-size, grows)

        self._known[key] = weakref.ref(storage, freed)
        return True

    def _change(self, size: int, grows: bool) -> None:
        if grows:
            self._grown += size
        else:
            self._fixed += size
