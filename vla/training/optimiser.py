"""AdamW, Adafactor and Muon over what is trained, with a rate and a curve per part."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla.config import OptimConfig
from vla.training.adafactor import Adafactor
from vla.training.muon import Muon
from vla.training.schedule import Schedule, learning_rate, multiplier

__all__ = [
    "BIG_VISION_DECAY",
    "Optimisers",
    "freeze",
    "make_optimiser",
    "set_learning_rate",
    "trained_parameters",
    "under",
]

# What big_vision decays, by our names: kernels, which only the image encoder's and the connector's
# matrices are called. Gemma's are "w", "linear", "input_embedding" there, and are not decayed.
BIG_VISION_DECAY = (
    r"(backbone\.)?(projector(\.fc\d)?|vision\.embedding|"
    r"vision\.blocks\.\d+\.(\w+_proj|fc\d))\.weight"
)


def freeze(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Turn off gradients for all parameters under these dotted prefixes, e.g. `backbone.vision`.

    Raises ValueError for a prefix that no parameter has.
    """
    for prefix in prefixes:
        for _, parameter in under(model, prefix):
            parameter.requires_grad_(False)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that ask for a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Optimisers:
    """Several optimisers that step together and look like one; each parameter belongs to one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """Live moments of every parameter; of those in eight bits, the numbers and their scales."""
        return {
            p: dict(pair for item in moments.items() for pair in _plain(*item))
            for part in self.parts
            for p, moments in part.state.items()
        }

    def step(self, shut: Tensor | None = None) -> None:
        """One step of each, unless the scalar `shut` is 1. AdamW's kernel and Muon read it on the
        device; the others have no way to, so that with these the host waits for the number."""
        kernel = all(isinstance(part, torch.optim.AdamW | Muon) for part in self.parts)
        if shut is not None and not kernel and bool(shut):
            return
        for part in self.parts:
            if isinstance(part, torch.optim.AdamW | Muon):
                part.found_inf = shut  # pyright: ignore[reportAttributeAccessIssue]
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def _plain(name: str, moment: Tensor) -> Iterator[tuple[str, Tensor]]:
    local = moment.to_local() if isinstance(moment, DTensor) else moment
    if not hasattr(local, "__tensor_flatten__"):
        yield name, moment
        return
    parts, _ = local.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    for part in parts:
        value = getattr(local, part)
        if (
            isinstance(moment, DTensor) and part != "qmap"
        ):  # what numbers stand for: the same for all
            value = DTensor.from_local(value, moment.device_mesh, moment.placements)
        yield f"{name}.{part}", value


def make_optimiser(model: nn.Module, config: OptimConfig) -> Optimisers:
    """What `config.method` names, over the trained parameters. Each group carries `factor`, its
    share of the rate, and `schedule`, its curve (None: the config's own).

    Weight decay is decoupled and multiplied by the learning rate, as in optax; without
    `config.decay_by_rate` by the schedule alone, as in big_vision. It applies to parameters whose
    name `config.decay` matches, or else to those with at least `config.decay_min_dims` dimensions.
    Where several prefixes of `lr_factors` or `schedules` match, the longest one holds.

    With `config.muon_lr`, the matrices inside transformer blocks are trained by Muon instead
    (`vla.training.muon`), whose updates are orthogonal: a small model learned to see in
    half the steps with it.
    """
    factors = _by_name(model, config.lr_factors)
    schedules = _by_name(model, config.schedules)
    muon_share = 0.0 if config.muon_lr is None else config.muon_lr / config.lr
    groups: dict[tuple[bool, float, bool, Schedule | None], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model).items():
        matrix = muon_share > 0 and parameter.dim() == 2 and ".blocks." in name
        factor = factors.get(name, 1.0) * (muon_share if matrix else 1.0)
        decayed = parameter.dim() >= config.decay_min_dims
        if config.decay is not None:
            decayed = re.fullmatch(config.decay, name) is not None
        key = (matrix, factor, decayed, schedules.get(name, config.schedule))
        groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("every parameter is frozen; remove something from `freeze`")
    others, muon = (
        [
            {
                "params": parameters,
                "factor": factor,
                "schedule": schedule,
                "weight_decay": _decay(config, factor) if decayed else 0.0,
            }
            for (matrix, factor, decayed, schedule), parameters in groups.items()
            if matrix == wanted
        ]
        for wanted in (False, True)
    )
    parts = []
    if others:
        make = {"adamw": _adamw, "adafactor": _adafactor, "adamw8bit": _adamw8bit}[config.method]
        parts.append(make(others, config))
    if muon:
        assert config.muon_lr is not None
        parts.append(Muon(muon, config.muon_lr))
    return Optimisers(*parts)


def _by_name[T](model: nn.Module, values: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The value of the longest prefix, by name of parameter."""
    found: dict[str, T] = {}
    for prefix, value in sorted(values, key=lambda item: len(item[0])):
        found |= {name: value for name, _ in under(model, prefix)}
    return found


def _decay(config: OptimConfig, factor: float) -> float:
    """Optimisers multiply it by the group's rate, which is lr · factor · schedule."""
    if config.decay_by_rate:
        return config.weight_decay
    return config.weight_decay / (config.lr * factor)


def _adamw(groups: list[dict], config: OptimConfig) -> torch.optim.AdamW:
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    for parameter in _parameters(groups):
        # AdamW makes these at its first step; made here, they can be filled from a checkpoint.
        adamw.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return adamw


def _adafactor(groups: list[dict], config: OptimConfig) -> Adafactor:
    momentum, beta2_cap = config.betas
    return Adafactor(groups, config.lr, momentum, beta2_cap)


def _adamw8bit(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW with moments of eight bits, in blocks of 256 with a scale each (Dettmers et al.,
    arXiv 2110.02861); tensors of fewer than 4096 elements keep theirs in float32."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise ImportError('optim.method "adamw8bit" needs torchao; install vla[lowbit]') from error
    for parameter in _parameters(groups):
        if (
            isinstance(parameter, DTensor)
            and parameter.device.type != parameter.device_mesh.device_type
        ):
            raise ValueError(
                'optim.method "adamw8bit" keeps its moments beside the weights; leave out '
                "parallel.offload, or take another method"
            )
    adamw = AdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    for parameter in _parameters(groups):
        adamw.state[parameter] = {  # as above
            "step": torch.tensor(0.0),
            "exp_avg": _eight_bits(adamw, parameter, True),
            "exp_avg_sq": _eight_bits(adamw, parameter, False),
        }
    return adamw


def _eight_bits(adamw: Any, parameter: nn.Parameter, signed: bool) -> Tensor:
    """A moment of zeros, in float32 where processes have unequal parts: all have to agree."""
    if isinstance(parameter, DTensor):
        shards = parameter.device_mesh.size(parameter.device_mesh.ndim - 1)
        if parameter.shape[0] % shards:
            return torch.zeros_like(parameter)
    return adamw._new_buffer(parameter, signed)


def _parameters(groups: list[dict]) -> list[nn.Parameter]:
    return [parameter for group in groups for parameter in group["params"]]


def set_learning_rate(optimiser: Optimisers, config: OptimConfig, step: int, steps: int) -> float:
    """Set every group to the rate of its schedule at `step`, times its factor; returns the rate
    of the config's own schedule."""
    for group in optimiser.param_groups:
        rate = _rate(config, group["schedule"], step, steps) * group["factor"]
        if isinstance(group["lr"], Tensor):  # torchao's, so that its compiled step stays as it is
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return _rate(config, config.schedule, step, steps)


def _rate(config: OptimConfig, schedule: Schedule | None, step: int, steps: int) -> float:
    if schedule is not None:
        return config.lr * multiplier(schedule, step, steps)
    return learning_rate(
        step,
        peak=config.lr,
        warmup=config.warmup,
        decay_steps=steps if config.decay_steps is None else config.decay_steps,
        end=config.end_lr,
    )


def under(model: nn.Module, prefix: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters under a dotted prefix. Raises ValueError, with the closest name, for none."""
    found = [(n, p) for n, p in model.named_parameters() if f"{n}.".startswith(f"{prefix}.")]
    if not found:
        names = [name for name, _ in model.named_modules() if name]
        close = difflib.get_close_matches(prefix, names, n=1, cutoff=0)
        meant = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"the model has no parameter under '{prefix}'{meant}")
    return found
