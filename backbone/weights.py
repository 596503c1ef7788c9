"""Write and read weights, all or nothing: the one strict loader."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from backbone.sources.headers import safetensors_header
from backbone.sources.places import Place, Weights, some
from backbone.sources.read import read

Shape = tuple[int, ...]


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
    """Fill `module` from one safetensors file, strictly and tensor by tensor.

    Raises as `weights_for` does; then nothing has been loaded.
    """
    weights = weights_for(module, path)
    _copy(module.state_dict(), read(weights))


def weights_for(module: nn.Module, path: Path | str) -> Weights:
    """A safetensors file that fits `module`, which may be on the meta device; nothing is read.

    Raises FileNotFoundError if there is no such file, ValueError if it is not whole, or if a
    weight is missing, extra or of another shape: the message lists both sides.
    """
    weights = file_weights(path)
    check_fit(shapes_of(module.state_dict()), weights.shapes, str(path))
    return weights


def file_weights(path: Path | str) -> Weights:
    """A safetensors file whose names are ours. Raises as `load_weights` does of the file."""
    path = Path(path)
    tensors = safetensors_header(path)
    return Weights(path, tensors, {name: Place(name) for name in tensors})


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill `module` from named tensors under the same rules; `source` names them in errors."""
    own = module.state_dict()
    check_fit(shapes_of(own), shapes_of(tensors), source)
    _copy(own, tensors.items())


def fill(module: nn.Module, tensors: Iterable[tuple[str, Tensor]], device) -> None:
    """Give the parameters of a `module` that was built on the meta device their values.

    Each tensor goes to `device` in its parameter's dtype. One that is there already, as on the CPU
    where a file has that dtype, is taken as it is: a private mapping of the file, whose pages are
    read when they are first used and copied when they are first written to.
    Call `check_fit` first: a parameter that gets no value, or two, is an error of the program.
    """
    assert not list(module.buffers()), "buffers would be left without values"
    left = dict(module.named_parameters())
    for name, tensor in tensors:
        parameter, (owner, _, leaf) = left.pop(name), name.rpartition(".")
        value = tensor
        there = tensor.dtype == parameter.dtype and tensor.device == torch.device(device)
        if not (there and tensor.is_contiguous()):
            value = torch.empty(tensor.shape, dtype=parameter.dtype, device=device).copy_(tensor)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, parameter.requires_grad))
    assert not left, f"{some(sorted(left))} got no value"


def check_fit(
    model: Mapping[str, Shape], file: Mapping[str, Shape], source: str, stray: Iterable[str] = ()
) -> None:
    """Raise ValueError unless both have the same names and shapes and nothing is `stray`."""
    missing = sorted(model.keys() - file.keys())
    extra = [*sorted(file.keys() - model.keys()), *stray]
    misshapen = [
        f"{k}: model {list(model[k])}, file {list(file[k])}"
        for k in sorted(model.keys() & file.keys())
        if model[k] != file[k]
    ]
    if missing or extra or misshapen:
        raise ValueError(
            f"{source} does not fit the model; nothing was loaded. "
            f"missing from the file: {some(missing, 20)}; not in the model: {some(extra, 20)}; "
            f"of another shape: {some(misshapen, 20)}. Are config and weights of one model?"
        )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Of every named tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _copy(own: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> None:
    left = set(own)
    with torch.no_grad():
        for name, tensor in tensors:
            own[name].copy_(tensor)
            left.remove(name)
    assert not left, f"{some(sorted(left))} got no value"
