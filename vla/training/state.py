"""Everything that changes while training, as named tensors, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vla.training.ema import Ema
from vla.training.optimiser import Optimisers, trained_parameters
from vla.training.shards import Kind, kinds, read_into
from vla.training.world import World

__all__ = ["TrainState", "check_same", "kinds_of"]


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

    def read(self, folder: Path, world: World) -> None:
        """Copy a checkpoint in, of any number of processes. Raises ValueError as `check_same` does,
        with nothing copied."""
        own = self.tensors()
        for name, tensors in own.items():
            check_same(kinds_of(tensors), kinds(folder, name), f"{folder}/{name}", name == "rng")
        for name, tensors in own.items():
            read_into(tensors, folder, name, world)
        torch.set_rng_state(own["rng"]["cpu"])
        if "cuda" in own["rng"]:
            torch.cuda.set_rng_state(own["rng"]["cuda"])


def check_same(
    own: Mapping[str, Kind], saved: Mapping[str, Kind], source: str, more: bool = False
) -> None:
    """Raise ValueError, with both lists, unless names, dtypes and shapes are the same.

    more: `source` may hold what this run has no use for.
    """
    missing = sorted(own.keys() - saved.keys())
    extra = [] if more else sorted(saved.keys() - own.keys())
    other = [
        f"{name}: {_text(own[name])} here, {_text(saved[name])} saved"
        for name in sorted(own.keys() & saved.keys())
        if own[name] != saved[name]
    ]
    if missing or extra or other:
        raise ValueError(
            f"{source} does not fit this run. missing from it: {_some(missing)}; "
            f"not in this run: {_some(extra)}; of another shape or dtype: {_some(other)}. "
            "Resume with the config that wrote it"
        )


def kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """Dtype and shape of each."""
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def _text(kind: Kind) -> str:
    return f"{kind[0]} {list(kind[1])}"


def _some(names: list[str], most: int = 20) -> str:
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _rng() -> dict[str, Tensor]:
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return rng
