"""What the files of a policy say, whoever wrote them, before any weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vla.layouts import Place
from vla.sources.headers import Tensor
from vla.sources.sizes import Heads, Sizes

if TYPE_CHECKING:
    from vla.data.stats import NormStats

TOKENIZERS = ("tokenizer.model", "tokenizer.json")
Origin = Literal["vla", "LeRobot", "openpi PyTorch", "openpi JAX"]


@dataclass(frozen=True)
class Weights:
    """Tensors on disk under our names.

    path: what to open: a safetensors file, a folder with an index, or an orbax folder.
    tensors: the file's own keys. places: our name → where it stands.
    unused: keys that no action depends on, with the reason. stray: keys that nobody knows.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    places: Mapping[str, Place]
    unused: Mapping[str, str] = field(default_factory=dict)
    heads: Heads | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter under our name."""
        return {ours: self.shape(place) for ours, place in self.places.items()}

    def shape(self, place: Place) -> tuple[int, ...]:
        """Of what stands at `place`, as it is read."""
        shape = self.tensors[place.key].shape[len(place.index) :]
        return rearranged(shape, place.pattern) if place.pattern else shape

    @property
    def stray(self) -> list[str]:
        used = {place.key for place in self.places.values()}
        return sorted(self.tensors.keys() - used - self.unused.keys())

    @property
    def parameters(self) -> int:
        """Elements that the model has, dead weight left out."""
        used = {place.key for place in self.places.values()}
        return sum(self.tensors[key].count for key in used if key in self.tensors)

    @property
    def unused_bytes(self) -> int:
        return sum(self.tensors[key].bytes for key in self.unused)


def rearranged(shape: tuple[int, ...], pattern: str) -> tuple[int, ...]:
    """What einops' `pattern` makes of a shape: (2, 3, 5) by "n d h -> (n h) d" is (10, 3)."""
    before, _, after = pattern.partition("->")
    size = dict(zip(before.split(), shape, strict=True))
    groups = re.findall(r"\(([^)]*)\)|(\S+)", after)
    return tuple(math.prod(size[name] for name in (a or b).split()) for a, b in groups)


@dataclass(frozen=True)
class PolicyFiles:
    """A policy's folder, read but for its weights. None: the files do not say.

    cameras: the robot's names, in the model's order, without `observation.images.`.
    optional_cameras: the model was trained to do without some of them.
    state_dim, action_dim: the robot's own. horizon: actions in a chunk.
    quantiles: `stats` are used by their q01 and q99. epsilon: added to a std or a range.
    relative_dims: action dimensions that the model predicts relative to the state.
    still, discrete_state: as in `PolicyConfig`. numerics: the fields of a `Numerics`, where the
    folder holds some; else the origin's own.
    stats_fault: why there are no statistics, or why these cannot be used.
    """

    origin: Origin
    folder: Path
    weights: Weights
    sizes: Sizes
    cameras: tuple[str, ...]
    state_dim: int | None
    action_dim: int | None
    horizon: int | None
    prompt_length: int
    steps: int = 10
    optional_cameras: bool = True
    quantiles: bool = False
    epsilon: float | None = None
    relative_dims: tuple[int, ...] = ()
    stats: NormStats | None = None
    stats_fault: str | None = None
    notes: tuple[str, ...] = ()
    still: float = 0
    discrete_state: bool = True
    numerics: Mapping[str, object] | None = None

    @property
    def model(self) -> str:
        return "π0.5" if self.sizes.adaptive else "π0"

    @property
    def tokenizer(self) -> Path | None:
        """The folder that holds one: this one, or one inside it."""
        inside = sorted(path for path in self.folder.iterdir() if path.is_dir())
        for place in (self.folder, *inside):
            if any((place / name).is_file() for name in TOKENIZERS):
                return place
        return None
