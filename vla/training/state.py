"""Everything that changes while training, as named tensors, and back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla.training.ema import Ema
from vla.training.optimiser import Optimisers, trained_parameters

__all__ = ["TrainState", "fill"]


@dataclass(frozen=True)
class TrainState:
    """Weights, their average, the optimiser's moments and torch's random state.

    The learning rate, the data order and the noise are functions of the step: no state.
    """

    model: nn.Module
    optimiser: Optimisers
    ema: Ema | None

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The live tensors, by file and name."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in trained_parameters(self.model).items()
            for key, value in self.optimiser.state[parameter].items()
        }
        files = {"model": self.model.state_dict(), "optimiser": moments, "rng": _rng()}
        return files | ({} if self.ema is None else {"ema": self.ema.shadow})

    def fill(self, files: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Copy saved tensors in; raises ValueError as the function `fill` does."""
        own = self.tensors()
        for name in ("model", "optimiser", "ema"):
            if name in own:
                fill(own[name], files[name], f"{source}/{name}.safetensors")
        torch.set_rng_state(files["rng"]["cpu"])
        if "cuda" in files["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(files["rng"]["cuda"])


@torch.no_grad()
def fill(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], source: str) -> None:
    """Copy `saved` into the tensors of `own`; names, shapes and dtypes must be the same.

    Raises ValueError that lists what is missing, extra or misshapen; then nothing is copied.
    """
    missing = sorted(own.keys() - saved.keys())
    extra = sorted(saved.keys() - own.keys())
    other = [
        f"{name}: {_kind(own[name])} here, {_kind(saved[name])} saved"
        for name in sorted(own.keys() & saved.keys())
        if _kind(own[name]) != _kind(saved[name])
    ]
    if missing or extra or other:
        raise ValueError(
            f"{source} does not fit this run. missing from it: {_some(missing)}; "
            f"not in this run: {_some(extra)}; of another shape or dtype: {_some(other)}. "
            "Resume with the config that wrote it"
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _some(names: list[str], most: int = 20) -> str:
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _rng() -> dict[str, Tensor]:
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return rng
