"""Model FLOPs utilisation: what part of a card's peak a run's arithmetic takes.

MFU = FLOPs of forward and backward pass, recomputation left out / (seconds · peak).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla.training.job import Microbatch
from vla.training.parallel import outline

__all__ = ["Utilisation", "peak_tflops"]

# Products of matrices in bfloat16, dense, TFLOP/s; the makers' data sheets. The first name that a
# card's own contains holds.
PEAKS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("RTX A6000", 154.8),
)


def peak_tflops(name: str) -> float | None:
    """Of the card that CUDA calls `name`; None where it isn't known."""
    return next((peak for part, peak in PEAKS if part in name), None)


class Utilisation:
    """peak: of one card, TFLOP/s; None: nothing is counted. model: as it is before it is sharded or
    its blocks compiled or recomputed.

    Work is counted on tensors without numbers, once for each set of shapes: no number that training
    uses is touched, and the model's own memory is not taken twice.
    """

    def __init__(self, model: nn.Module, peak: float | None):
        self.peak = peak
        self._model = None if peak is None else outline(model)
        self._known: dict[Any, float] = {}

    @classmethod
    def on(cls, device: torch.device, model: nn.Module, peak: float | None) -> Utilisation:
        """Of this card: `peak` where it is given, else that of the table."""
        if peak is None and device.type == "cuda":
            peak = peak_tflops(torch.cuda.get_device_name(device))
        return cls(model, peak)

    def work(self, microbatches: Sequence[Microbatch]) -> float:
        """FLOPs of an update on these, forwards and backwards; 0 where no peak is known."""
        return 0.0 if self._model is None else sum(map(self._flops, microbatches))

    def _flops(self, microbatch: Microbatch) -> float:
        assert self._model is not None
        key = tuple(map(_shapes, microbatch.inputs))
        if key not in self._known:
            from vla.planning.rehearsal import count_flops  # slow to import

            self._known[key] = count_flops(self._model, microbatch.inputs)
        return self._known[key]


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if is_dataclass(value):
        return type(value), *(_shapes(getattr(value, field.name)) for field in fields(value))
    return None
