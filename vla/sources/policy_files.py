"""What the files of a policy say, whoever wrote them, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from backbone.sources.paligemma_files import TOKENIZERS
from backbone.sources.places import Weights
from vla.sources.sizes import Sizes

if TYPE_CHECKING:
    from vla.data.stats import NormStats

Origin = Literal["vla", "LeRobot", "openpi PyTorch", "openpi JAX"]


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
