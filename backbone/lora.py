"""Low-rank adapters on linear layers (LoRA, arXiv 2106.09685): y = W x + (α / r) · B A x.

A and B learn, W stays. B starts at zero, so that a model with new adapters is the one without.
Files are PEFT's: `adapter_model.safetensors` and `adapter_config.json`.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.sources.places import some
from backbone.sources.read import read
from backbone.weights import Shape, check_fit, file_weights, save_tensors

ATTENTION_AND_MLP = r"(.*\.)?(language|gemma)\.blocks\.\d+\..*(q|k|v|o|gate|up|down)_proj"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT = "base_model.model."  # before every name in PEFT's file


@dataclass(frozen=True)
class LoRAConfig:
    """rank: r. alpha: the adapters' output is scaled by alpha / rank. targets: a regular expression
    that the whole dotted name of a linear layer matches, by default those of Gemma's blocks at both
    sizes. train: prefixes of what learns beside the adapters, such as "expert.action_out_proj".
    """

    rank: int = 16
    alpha: float = 16.0
    targets: str = ATTENTION_AND_MLP
    train: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; it must be 1 or more")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"lora.targets {self.targets!r} is no pattern: {error}") from error


class LoRALinear(nn.Module):
    """A linear layer, `base_layer`, and its adapter. lora_A: [r, in]; lora_B: [out, r]."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        where = {"device": linear.weight.device, "dtype": torch.float32}
        self.base_layer = linear
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, **where))
        self.lora_B = nn.Parameter(torch.empty(linear.out_features, rank, **where))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.lora_B)
        if not self.lora_A.is_meta:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """Of the layer beneath."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., in]. Returns what the layer beneath does, with the adapter's part."""
        base = self.base_layer(x)
        low = F.linear(x.to(self.lora_A.dtype), self.lora_A)
        return base + (F.linear(low, self.lora_B) * self.scale).to(base.dtype)

    def merged(self) -> Tensor:
        """W + (α / r) · B A, of W's dtype [out, in]."""
        wide = self.weight.float() + self.lora_B.float() @ self.lora_A.float() * self.scale
        return wide.to(self.weight.dtype)


def add_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Give the layers that match adapters, in place, and freeze all else but `config.train`.

    Returns the layers' names. Raises ValueError if no linear layer matches, or a prefix of
    `config.train` has no parameters.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [name for name in linear if re.fullmatch(config.targets, name)]
    if not found:
        raise ValueError(
            f"lora.targets {config.targets!r} matches no linear layer; there are {some(linear, 8)}"
        )
    names = [name for name, _ in model.named_parameters()]
    for prefix in config.train:
        if not any(f"{name}.".startswith(f"{prefix}.") for name in names):
            raise ValueError(f"lora.train has {prefix!r}, under which the model has no parameter")
    for name, parameter in model.named_parameters():
        kept = any(f"{name}.".startswith(f"{prefix}.") for prefix in config.train)
        parameter.requires_grad_(kept and parameter.requires_grad)
    for name in found:
        parent, _, leaf = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), leaf, LoRALinear(layer, config.rank, config.alpha))
    return found


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every layer with an adapter, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def merged(model: nn.Module) -> nn.Module:
    """A copy of `model` with plain layers that compute the same; it shares all other weights."""
    shared = {id(p): p for p in model.parameters()}
    plain = copy.deepcopy(model, shared)
    for name, layer in list(adapters(plain)):
        parent, _, leaf = name.rpartition(".")
        linear = layer.base_layer
        linear.weight = nn.Parameter(layer.merged(), requires_grad=False)
        setattr(plain.get_submodule(parent), leaf, linear)
    return plain


def save_adapters(model: nn.Module, folder: Path | str) -> None:
    """Write the adapters of `model` as PEFT does; they must share rank and α."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = dict(adapters(model))
    if not found:
        raise ValueError("the model has no adapters; add some with add_lora")
    save_tensors(
        {
            f"{_PEFT}{name}.{part}.weight": getattr(layer, part)
            for name, layer in found.items()
            for part in ("lora_A", "lora_B")
        },
        folder / ADAPTER,
    )
    ranks = {(layer.lora_A.shape[0], layer.scale) for layer in found.values()}
    assert len(ranks) == 1, "adapters of one model are made together"
    ((rank, scale),) = ranks
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": sorted(found),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapters(model: nn.Module, folder: Path | str) -> None:
    """Add to a plain `model` the adapters that `save_adapters` or PEFT wrote into `folder`.

    Raises FileNotFoundError if a file is missing, ValueError if it is no LoRA of plain linear
    layers, or names layers that the model does not have, or other sizes; then `model` is as before.
    """
    folder = Path(folder)
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    unsupported = [key for key in ("use_dora", "use_rslora", "modules_to_save") if config.get(key)]
    if config.get("peft_type") != "LORA" or unsupported:
        raise ValueError(
            f"{folder} is a {config.get('peft_type')} with {', '.join(unsupported) or 'nothing'}; "
            "expected a plain LORA"
        )
    weights = file_weights(folder / ADAPTER)
    suffix = ".lora_A.weight"
    names = [
        key.removeprefix(_PEFT).removesuffix(suffix)
        for key in weights.shapes
        if key.endswith(suffix)
    ]
    plain = dict(model.named_modules())
    linear = {name: layer for name in names if isinstance(layer := plain.get(name), nn.Linear)}
    wanted: dict[str, Shape] = {
        f"{_PEFT}{name}.{part}.weight": shape
        for name, layer in linear.items()
        for part, shape in (
            ("lora_A", (config["r"], layer.in_features)),
            ("lora_B", (layer.out_features, config["r"])),
        )
    }
    check_fit(wanted, weights.shapes, str(folder / ADAPTER))
    pattern = "|".join(map(re.escape, names))
    add_lora(model, LoRAConfig(config["r"], config["lora_alpha"], pattern))
    own = dict(adapters(model))
    with torch.no_grad():
        for key, tensor in read(weights):
            name, _, part = key.removeprefix(_PEFT).removesuffix(".weight").rpartition(".")
            getattr(own[name], part).copy_(tensor)
