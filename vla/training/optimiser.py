"""AdamW and Muon over what is trained, with a learning rate per part of the model."""

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vla.config import OptimConfig
from vla.training.schedule import learning_rate

__all__ = [
    "Optimisers",
    "freeze",
    "make_optimiser",
    "set_learning_rate",
    "trained_parameters",
    "under",
]


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
        """Live moments of every parameter."""
        return {p: moments for part in self.parts for p, moments in part.state.items()}

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def make_optimiser(model: nn.Module, config: OptimConfig) -> Optimisers:
    """AdamW over the trained parameters; each group carries `factor`, its share of the rate.

    Weight decay is decoupled and multiplied by the learning rate, as in optax. It applies to
    parameters with at least `config.decay_min_dims` dimensions. Where several prefixes of
    `config.lr_factors` match, the longest one holds.

    With `config.muon_lr`, the matrices inside transformer blocks are trained by Muon instead
    (Jordan et al. 2024; torch's own), whose updates are orthogonal: a small model learned to see in
    half the steps with it.
    """
    factors: dict[str, float] = {}
    for prefix, factor in sorted(config.lr_factors, key=lambda item: len(item[0])):
        factors |= {name: factor for name, _ in under(model, prefix)}
    muon_share = 0.0 if config.muon_lr is None else config.muon_lr / config.lr
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model).items():
        matrix = muon_share > 0 and parameter.dim() == 2 and ".blocks." in name
        factor = factors.get(name, 1.0) * (muon_share if matrix else 1.0)
        decayed = parameter.dim() >= config.decay_min_dims
        groups.setdefault((matrix, factor, decayed), []).append(parameter)
    if not groups:
        raise ValueError("every parameter is frozen; remove something from `freeze`")
    adamw, muon = (
        [
            {
                "params": parameters,
                "factor": factor,
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
            for (matrix, factor, decayed), parameters in groups.items()
            if matrix == wanted
        ]
        for wanted in (False, True)
    )
    parts = []
    if adamw:
        parts.append(_adamw(adamw, config))
    if muon:
        parts.append(_muon(muon, config))
    return Optimisers(*parts)


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


def _muon(groups: list[dict], config: OptimConfig) -> torch.optim.Muon:
    assert config.muon_lr is not None, "Muon's groups are only made where it has a rate"
    muon = torch.optim.Muon(groups, lr=config.muon_lr)
    for parameter in _parameters(groups):
        muon.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
    return muon


def _parameters(groups: list[dict]) -> list[nn.Parameter]:
    return [parameter for group in groups for parameter in group["params"]]


def set_learning_rate(optimiser: Optimisers, config: OptimConfig, step: int, steps: int) -> float:
    """Set every group to the rate of `step` times its factor; returns the rate before factors."""
    rate = learning_rate(
        step,
        peak=config.lr,
        warmup=config.warmup,
        decay_steps=steps if config.decay_steps is None else config.decay_steps,
        end=config.end_lr,
    )
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def under(model: nn.Module, prefix: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters under a dotted prefix. Raises ValueError, with the closest name, for none."""
    found = [(n, p) for n, p in model.named_parameters() if f"{n}.".startswith(f"{prefix}.")]
    if not found:
        names = [name for name, _ in model.named_modules() if name]
        close = difflib.get_close_matches(prefix, names, n=1, cutoff=0)
        meant = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"the model has no parameter under '{prefix}'{meant}")
    return found
