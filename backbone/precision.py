"""Which numbers a device multiplies well."""

from typing import Literal

import torch

__all__ = ["autocast", "multiplies_bfloat16", "resolved"]


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether products of bfloat16 matrices are worth it there.

    On a CPU without AVX-512 (or, on ARM, BF16 instructions) torch falls back to loops that were
    some four hundred times as slow as float32 (docs/results.md). Graphics cards before NVIDIA's
    Ampere emulate them.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def resolved(precision: str, device: torch.device | str) -> Literal["float32", "bfloat16"]:
    """What is computed in on `device`: "auto" is bfloat16 where that is multiplied, else float32.

    Raises ValueError for another name than "auto", "float32" and "bfloat16".
    """
    match precision:
        case "auto":
            return "bfloat16" if multiplies_bfloat16(device) else "float32"
        case "float32" | "bfloat16":
            return precision
        case _:
            raise ValueError(f"precision is auto, float32 or bfloat16, not {precision!r}")


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Forward passes in here compute in `precision`, whatever the weights are kept in."""
    kind = torch.device(device).type
    half = resolved(precision, device) == "bfloat16"
    return torch.autocast(kind, torch.bfloat16, enabled=half)
