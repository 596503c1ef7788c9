"""What a training run is made of, and how a run's file becomes a config.

A run is one Python file that ends in `config = TrainConfig(...)`. `load_config` executes it and
applies command-line overrides by dotted name: `--steps 20 --optim.lr 1e-4`. These files are code:
load only your own.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import runpy
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import AvoidSubcommands

from backbone.lora import LoRAConfig
from vla.pi0 import Pi0Config
from vla.pi05 import Pi05Config
from vla.training.parallel import ParallelConfig
from vla.training.schedule import Schedule
from vla.training.world import ALONE, World

if TYPE_CHECKING:
    from vla.training.job import Job

__all__ = [
    "DataConfig",
    "OptimConfig",
    "ParallelConfig",
    "RunConfig",
    "TrainConfig",
    "as_dict",
    "defaults",
    "load_config",
    "overridden",
    "save_config",
]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and half a cosine; the defaults are openpi's.

    With `schedule`, the rate is `lr` times that curve, and `warmup`, `decay_steps` and `end_lr`
    have no say; `schedules` gives parts of the model curves of their own.
    """

    lr: float = 2.5e-5  # highest learning rate, reached after the warm-up
    warmup: int = 1000  # steps
    decay_steps: int | None = None  # step at which end_lr is reached; None: the run's last
    end_lr: float = 2.5e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-10
    decay_min_dims: int = 2  # decay tensors of at least so many dimensions; openpi: 0, all of them
    clip: float | None = 1.0  # largest global gradient norm
    muon_lr: float | None = None  # Muon at this rate on the blocks' matrices; None: AdamW on all
    # (prefix, factor): parameters under this name learn at factor × lr; the longest prefix holds
    lr_factors: tuple[tuple[str, float], ...] = ()
    method: Literal["adamw", "adafactor", "adamw8bit"] = "adamw"  # the last needs vla[lowbit]
    schedule: AvoidSubcommands[Schedule | None] = None  # big_vision's curves instead of openpi's
    # (prefix, schedule): parameters under this name follow it; the longest prefix holds
    schedules: tuple[tuple[str, Schedule], ...] = ()
    decay: str | None = None  # decay parameters whose whole name this regular expression matches
    decay_by_rate: bool = True  # False, as in big_vision: by the schedule, not by `lr`

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"optim.lr is {self.lr}; it must be above 0")
        if self.warmup < 0:
            raise ValueError(f"optim.warmup is {self.warmup}; it must be 0 or more")
        if self.muon_lr is not None and self.muon_lr <= 0:
            raise ValueError(f"optim.muon_lr is {self.muon_lr}; give a rate above 0, or None")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"optim.clip is {self.clip}; give a norm above 0, or None not to clip")
        if self.decay is not None:
            try:
                re.compile(self.decay)
            except re.error as error:
                raise ValueError(
                    f"optim.decay is {self.decay!r}, no regular expression: {error}"
                ) from error
        if not self.decay_by_rate and any(factor == 0 for _, factor in self.lr_factors):
            raise ValueError(
                "optim.lr_factors holds a factor of 0, and optim.decay_by_rate is False: such a "
                "part would decay and not learn; freeze it instead"
            )


@dataclass(frozen=True)
class DataConfig:
    """Demonstrations to learn from. Horizon and image size follow from the model."""

    root: Path  # a LeRobotDataset v3
    cameras: tuple[str, ...] | None = None  # names without `observation.images.`; None: all
    held_out: float = 0.05  # share of episodes kept from training for the validation loss
    cache: bool = True  # decode all pictures once and keep them in memory; False: decode as needed
    cache_gb: float = 4.0  # most memory that the cache may take, 10⁹ bytes
    allow_short_episodes: bool = False  # take episodes shorter than the horizon
    tokenizer: Path | None = None  # folder or SentencePiece file; None: init's, or the small one
    prompt_length: int | None = None  # tokens that a prompt may take; None: 48 for π0, 200 for π0.5
    discrete_state: bool = True  # π0.5's prompt tells the state; else π0.5 doesn't know it

    def __post_init__(self):
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data.held_out is {self.held_out}; it is a share in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has, whatever it trains. A subclass adds a model and data, and says in `job`
    what they amount to."""

    output_dir: Path
    steps: int
    batch_size: int  # samples per update, over all micro-batches
    accumulate: int = 1  # micro-batches per update; does not change the result
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    lora: LoRAConfig | None = None  # low-rank adapters; all else but `lora.train` stays as it is
    freeze: tuple[str, ...] = ()  # parts that stay as they are, e.g. "backbone.vision"
    ema: float | None = (
        0.99  # decay of the averaged weights, which are the result; None: no average
    )
    ema_ramp: bool = False  # start with a small decay: min(ema, (1 + step) / (10 + step))
    precision: Literal["float32", "bfloat16", "auto"] = (
        "float32"  # to compute in; weights are float32. auto: bfloat16 where the device has it
    )
    text_bucket: int | None = None  # tokens; text is padded to a multiple of it, not to its most
    device: str | None = None  # None: CUDA where there is one, else the CPU
    seed: int = 0
    workers: int = 0  # processes that prepare batches; 0: the training process itself
    worker_timeout: float = 60.0  # seconds without a batch before a worker counts as hung
    log_every: int = 10  # steps
    eval_every: int = 500  # steps between validation losses
    eval_batches: int = 8  # batches of held-out samples in a validation loss
    save_every: int = 1000  # steps between checkpoints
    keep: int = 2  # newest checkpoints that are kept
    keep_every: int | None = None  # steps; checkpoints of their multiples are kept for good
    skip_not_finite: int = 0  # steps that may be left out because a loss or gradient is not finite
    tensorboard: bool = True
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()  # services that get all that is logged
    project: str = "vla"  # of trackers
    trace: tuple[int, int] | None = None  # first step, and the one after the last, to profile
    peak_tflops: float | None = None  # of a card, for MFU; None: of those that are known

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "eval_every", "save_every"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}; at least 1 checkpoint has to be kept")
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(f"keep_every is {self.keep_every}; give steps, 1 or more, or None")
        if self.skip_not_finite < 0:
            raise ValueError(f"skip_not_finite is {self.skip_not_finite}; it must be 0 or more")
        if self.trace is not None and not 0 <= self.trace[0] < self.trace[1]:
            raise ValueError(f"trace is {self.trace}; give a first step and a later one, or None")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"peak_tflops is {self.peak_tflops}; it must be above 0, or None")
        if self.text_bucket is not None and self.text_bucket < 1:
            raise ValueError(f"text_bucket is {self.text_bucket}; give tokens, 1 or more, or None")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {self.accumulate} equal "
                "micro-batches; change batch_size or accumulate"
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it is a decay in [0, 1), or None for no average")

    def job(self, world: World = ALONE) -> Job:
        """The model, this process's batches and what to save; heavy, it opens the data."""
        raise NotImplementedError("use TrainConfig, or a subclass of RunConfig that defines `job`")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A policy trained on demonstrations."""

    model: AvoidSubcommands[Pi0Config | Pi05Config]  # --model.… changes the one that the file names
    data: DataConfig
    draws: int = 4  # noise and time draws per observation; they share one reading of the prefix
    init: Path | None = None  # policy or PaliGemma folder to start from; None: random weights
    fresh: tuple[str, ...] = ()  # parts that start from random weights all the same

    def __post_init__(self):
        super().__post_init__()
        if self.fresh and self.init is None:
            raise ValueError(f"fresh is {self.fresh}, but without init all is random; leave it out")
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}; it must be 1 or more")

    def job(self, world: World = ALONE) -> Job:
        from vla.training.policy_job import policy_job

        return policy_job(self, world)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Execute a run's file and return its `config`, with `overrides` applied.

    overrides: as on a command line, `["--optim.lr", "1e-4", "--steps=20"]`.
    Raises FileNotFoundError if there is no such file, ValueError if it defines no config or a field
    is unknown (the message suggests the closest name). A value of the wrong type ends the process
    with status 2 and tyro's message.
    """
    path, overrides = Path(path), list(overrides)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py"))
        found = f"; {path.parent} has {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"no config file {path}{found}")
    config = _execute(path).get("config")
    if not isinstance(config, RunConfig):
        raise ValueError(
            f"{path} must end in `config = TrainConfig(...)`; "
            f"its `config` is {type(config).__name__ if config is not None else 'missing'}"
        )
    return overridden(config, overrides, f"vla train {path}")


def overridden[C: RunConfig](config: C, overrides: Iterable[str], prog: str) -> C:
    """`config` with fields of these names put over its own; raises as `load_config` does."""
    overrides = list(overrides)
    _check_names(overrides, config)
    return tyro.cli(type(config), default=config, args=overrides, prog=prog)


def as_dict(config: Any) -> dict[str, Any]:
    """A config as JSON holds it: nested dicts, lists for tuples, strings for paths."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """The default of every field that has one, by dotted name and as JSON holds it."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            found |= defaults(value, f"{prefix}{f.name}.")
        elif f.default is not dataclasses.MISSING:
            found[prefix + f.name] = json.loads(json.dumps(f.default, default=str))
    return found


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config as JSON, for people and for the comparison on resuming."""
    path.write_text(json.dumps(as_dict(config), indent=2) + "\n", encoding="utf-8")


def _execute(path: Path) -> dict[str, Any]:
    try:
        return runpy.run_path(str(path))
    except TypeError as error:
        # A dataclass's own message names the class and the field; add what was probably meant.
        message = r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'"
        if (match := re.match(message, str(error))) is None:
            raise
        class_name, name = match.groups()
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if dataclasses.is_dataclass(config_class := frame.f_globals.get(class_name)):
                known = [f.name for f in dataclasses.fields(config_class)]
                raise ValueError(
                    f"{path}: {class_name} has no field '{name}'{_suggestion(name, known)}"
                ) from error
        raise


def _check_names(overrides: list[str], config: RunConfig) -> None:
    known = list(_dotted(config))
    for word in overrides:
        if not word.startswith("--") or word in ("--", "--help"):
            continue
        name = word[2:].partition("=")[0].replace("-", "_")
        parts = name.split(".")
        positive = ".".join([*parts[:-1], parts[-1].removeprefix("no_")])  # --no-tensorboard
        if name not in known and positive not in known:
            raise ValueError(f"the config has no field '--{name}'{_suggestion(name, known, '--')}")


def _dotted(config: Any, prefix: str = "") -> Iterable[str]:
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _dotted(value, f"{prefix}{f.name}.")
        yield prefix + f.name


def _suggestion(name: str, known: list[str], mark: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    same_leaf = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    best = (same_leaf or close or [""])[0]
    if best:
        return f"; did you mean '{mark}{best}'?"
    return f"; it has {', '.join(sorted({k.partition('.')[0] for k in known}))}"
