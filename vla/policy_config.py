"""What a policy's folder says about it in config.json."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from backbone.numerics import Numerics
from vla.data.transforms import STILL
from vla.model import ModelConfig
from vla.pi0 import Pi0Config
from vla.pi05 import Pi05Config

MODEL_TYPES = {"vla-pi0": Pi0Config, "vla-pi05": Pi05Config}
PROMPT_LENGTHS = {Pi0Config: 48, Pi05Config: 200}  # openpi's, tokens


@dataclass(frozen=True)
class PolicyConfig:
    """Everything about a policy but its weights, statistics and vocabulary.

    cameras: names without `observation.images.`, in the order the model saw them in training.
    state_dim, action_dim: the robot's own; the model's may be larger, the rest is padding.
    prompt_length: tokens, BOS and newline included; openpi's π0 has 48, its π0.5 200.
    steps: Euler steps from noise to actions.
    discrete_state: π0.5's prompt tells the state; else π0.5 doesn't know it and its prompt is π0's,
        as in openpi's `pi05_libero`. π0 reads the state as a token of its own either way.
    quantiles: states and actions are scaled by their quantiles q01 and q99 instead of mean and std;
        None: as openpi does, π0.5 by quantiles and π0 not.
    still: dimensions with a narrower spread than this, in the robot's unit, count as never moving
        (see `MeanStd`); 0 for a policy that was trained elsewhere, where every dimension is scaled.
    optional_cameras: an observation may lack some of the cameras, as in openpi and LeRobot; else
        one that does is refused.
    relative_dims: action dimensions that the model predicts relative to the state's dimension of
        the same number at the chunk's start; statistics are those of the differences.
    Raises ValueError if the robot does not fit the model.
    """

    model: Pi0Config | Pi05Config
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    prompt_length: int = 48
    steps: int = 10
    discrete_state: bool = True
    quantiles: bool | None = None
    still: float = STILL
    optional_cameras: bool = False
    relative_dims: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras are {list(self.cameras)}; name each of at least one once")
        for name in ("state_dim", "action_dim"):
            robot, model = getattr(self, name), getattr(self.model.expert, name)
            if not 0 < robot <= model:
                raise ValueError(
                    f"the robot's {name} is {robot}, the model's is {model}; "
                    f"train with model.expert.{name} of {robot} or more"
                )
        for name, least in (("prompt_length", 3), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        both = min(self.state_dim, self.action_dim)
        if any(not 0 <= dim < both for dim in self.relative_dims):
            raise ValueError(
                f"relative_dims are {list(self.relative_dims)}; state and action share dimensions "
                f"0 to {both - 1} only"
            )

    @property
    def numerics(self) -> Numerics:
        """How the implementation that the weights were trained with rounds and prepares."""
        return self.model.backbone.numerics

    @property
    def tells_state(self) -> bool:
        """Whether the state stands in the prompt."""
        return self.discrete_state and isinstance(self.model, Pi05Config)

    @property
    def by_quantiles(self) -> bool:
        """Whether `quantiles` says so, or else the model's kind."""
        return isinstance(self.model, Pi05Config) if self.quantiles is None else self.quantiles

    @property
    def image_size(self) -> int:
        """Side of the model's pictures, pixels."""
        return self.model.backbone.resolution

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""
        return self.model.expert.horizon

    def save(self, path: Path) -> None:
        values = {"model_type": model_type(self.model), **dataclasses.asdict(self)}
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> PolicyConfig:
        """Read what `save` wrote.

        Raises FileNotFoundError if there is no such file, ValueError if it is of another kind, or a
        field is unknown, missing or of the wrong type; the message names it.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"no policy at {path.parent}: {path.name} is missing; give a folder that training "
                "wrote, with model.safetensors, config.json, norm_stats.json and tokenizer.model"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); copy it again") from error
        kind = values.pop("model_type", None) if isinstance(values, dict) else None
        if kind not in MODEL_TYPES:
            known = " or ".join(map(repr, MODEL_TYPES))
            raise ValueError(f"{path} has model_type {kind!r}, expected {known}")
        if "model" in values:
            values["model"] = _build(MODEL_TYPES[kind], values["model"], f"{path}: model")
        return _build(cls, values, str(path))


def model_type(config: ModelConfig) -> str:
    """What config.json calls a model of this config."""
    return next(name for name, kind in MODEL_TYPES.items() if isinstance(config, kind))


def _build(cls: type, values: Any, where: str) -> Any:
    """A dataclass, and those inside it, from nested dicts; every field must be known and right."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object with the fields of {cls.__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(fields)}"
            raise ValueError(f"{where}: {cls.__name__} has no field {name}; {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        if required and field.default_factory is dataclasses.MISSING and name not in values:
            raise ValueError(f"{where}: {name} is missing; copy the file again")
    types = get_type_hints(cls)
    return cls(**{k: _value(types[k], v, f"{where}: {k}") for k, v in values.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)  # pyright: ignore[reportArgumentType]
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(value)
    known = get_args(kind) or (kind,)
    if get_origin(kind) is Literal and value not in known:
        raise ValueError(f"{where} is {value!r}, expected {' or '.join(map(repr, known))}")
    plain = [k for k in known if isinstance(k, type)]
    wide = [*plain, int] if float in plain else plain
    exact = isinstance(value, bool) <= (bool in plain)  # True is an int to isinstance
    if plain and not (isinstance(value, tuple(wide)) and exact):
        raise ValueError(f"{where} is {value!r}, expected {' or '.join(k.__name__ for k in plain)}")
    return value
