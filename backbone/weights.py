"""Write and read weights as safetensors, all or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_weights(module: nn.Module, path: Path | str) -> None:
    """Write every parameter and buffer to one safetensors file, under a temporary name first."""
    save_tensors(module.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Write named tensors to `path`; an older file stays whole until the new one is complete."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError):
        temporary.unlink(missing_ok=True)
        raise


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Fill `module` from one safetensors file, strictly.

    Raises FileNotFoundError if there is no such file, ValueError if it is not whole, or if a
    weight is missing, extra or of another shape: the message lists both sides and nothing has been
    loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; expected a safetensors file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error
    load_tensors(module, tensors, source=str(path))


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill `module` from named tensors under the same rules; `source` names them in errors."""
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    extra = sorted(tensors.keys() - own.keys())
    misshapen = [
        f"{k}: model {list(own[k].shape)}, file {list(tensors[k].shape)}"
        for k in sorted(own.keys() & tensors.keys())
        if own[k].shape != tensors[k].shape
    ]
    if missing or extra or misshapen:
        raise ValueError(
            f"{source} does not fit the model; nothing was loaded. "
            f"missing from the file: {_some(missing)}; not in the model: {_some(extra)}; "
            f"of another shape: {_some(misshapen)}. Check that config and weights belong together"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _some(names: list[str], most: int = 20) -> str:
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
