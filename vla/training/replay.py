"""A step whose loss or gradient was not finite: kept as files, and made again to see what broke.

not_finite/<step>.<process>.safetensors   the tensors of that process's micro-batches
not_finite/<step>.<process>.json          what they were: kinds of inputs, samples, factors
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backbone.lora import LoRAConfig, add_lora
from backbone.paligemma import PaliGemma, TextBatch
from backbone.pretrained import read_config
from backbone.weights import save_tensors
from vla.batch import Batch
from vla.model import build
from vla.policy_config import PolicyConfig
from vla.training import checkpoint
from vla.training.diagnosis import Finding, diagnose, one_by_one
from vla.training.job import Microbatch
from vla.training.optimiser import freeze
from vla.training.shards import kinds, read_into
from vla.training.state import check_same, kinds_of
from vla.training.world import ALONE

__all__ = ["Replay", "keep", "kept", "replay"]

KINDS = {"Batch": Batch, "TextBatch": TextBatch}


def keep(microbatches: Sequence[Microbatch], path: Path) -> Path:
    """Write a step's micro-batches to a safetensors file and the JSON beside it; returns `path`.

    Names are `<micro-batch>.<input>`, with the field's name behind where the input has some, such
    as `0.0.images`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{i}.{name}": tensor
        for i, microbatch in enumerate(microbatches)
        for k, value in enumerate(microbatch.inputs)
        for name, tensor in _named(str(k), value)
    }
    save_tensors(tensors, path)
    about = [
        {
            "inputs": [type(value).__name__ for value in m.inputs],
            "samples": [str(sample) for sample in m.samples],
            "size": m.size,
            "factor": m.factor,
            "kind": m.kind,
        }
        for m in microbatches
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(about, indent=2), encoding="utf-8")
    os.replace(temporary, path.with_suffix(".json"))
    return path


def kept(path: Path) -> list[Microbatch]:
    """What `keep` wrote. Raises FileNotFoundError without one of the two files, ValueError for
    inputs of another kind than policies and PaliGemmas have."""
    tensors = load_file(path)
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return [
        Microbatch(
            tuple(_input(tensors, f"{i}.{k}", kind) for k, kind in enumerate(one["inputs"])),
            one["size"],
            one["samples"],
            factor=one["factor"],
            kind=one["kind"],
        )
        for i, one in enumerate(about)
    ]


@dataclass(frozen=True)
class Replay:
    """step: that was not made. weights: the checkpoint that was taken. behind: steps between the
    two; 0 where the weights are those of that moment. whole: of each micro-batch; alone: of each
    sample of those that are not finite, by name."""

    step: int
    weights: Path
    behind: int
    whole: tuple[Finding, ...]
    alone: dict[str, Finding]

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self), default=str))

    def __str__(self) -> str:
        late = f", {self.behind} steps before it" if self.behind else ""
        lines = [f"step {self.step}, with the weights of {self.weights}{late}"]
        lines += [f"micro-batch {i}: {finding}" for i, finding in enumerate(self.whole)]
        bad = {name: finding for name, finding in self.alone.items() if not finding.finite}
        lines += [f"  {name}: {finding}" for name, finding in bad.items()]
        if all(finding.finite for finding in self.whole):
            lines.append("all is finite here" + (": the weights have moved since" if late else ""))
        elif not bad:
            lines.append("  no sample does so alone; together their gradients are too large")
        return "\n".join(lines)


def replay(path: Path, device: torch.device) -> Replay:
    """Make the losses and gradients of a kept batch again, without an update.

    path: `<run>/not_finite/<step>.<process>.safetensors`. The weights are those of the run's newest
    whole checkpoint that isn't after the step: a run that ends over such a step saves one.
    Raises FileNotFoundError if there is none, or as `kept` does.
    """
    step = int(path.name.split(".")[0])
    folder = path.parent.parent / "checkpoints"
    steps = [s for s in checkpoint.steps(folder) if s <= step]
    whole = (s for s in reversed(steps) if checkpoint.damage(folder / str(s)) is None)
    if (newest := next(whole, None)) is None:
        raise FileNotFoundError(
            f"{folder} has no whole checkpoint of step {step} or before, so the weights that made "
            f"{path.name} are not known; replay it where the run left its checkpoints"
        )
    weights = folder / str(newest)
    config = checkpoint.read_state(weights)["config"]
    model = _model(weights, config).to(device).train()
    microbatches, precision = kept(path), config["precision"]
    findings = tuple(diagnose(model, m, device, precision) for m in microbatches)
    alone = {
        name: finding
        for m, found in zip(microbatches, findings, strict=True)
        if not found.finite
        for name, finding in one_by_one(model, m, device, precision)
    }
    return Replay(step, weights, step - newest, findings, alone)


def _model(weights: Path, config: dict[str, Any]) -> nn.Module:
    """As it was in training, on the CPU: of the sizes that the checkpoint's result states, with the
    weights themselves instead of their average."""
    model: nn.Module
    if (weights / "policy/config.json").is_file():
        model = build(PolicyConfig.load(weights / "policy/config.json").model)
        model.insulated = config.get("insulated", False)
    elif (weights / "paligemma").is_dir():
        model = PaliGemma(read_config(weights / "paligemma"))
    else:
        raise ValueError(
            f"{weights} holds neither a policy nor a PaliGemma; only these can be replayed"
        )
    freeze(model, tuple(config["freeze"]))
    if config["lora"] is not None:
        add_lora(model, LoRAConfig(**config["lora"] | {"train": tuple(config["lora"]["train"])}))
    own = model.state_dict()
    check_same(kinds_of(own), kinds(weights, "model"), f"{weights}/model")
    read_into(own, weights, "model", ALONE)
    return model


def _input(tensors: dict[str, Tensor], name: str, kind: str) -> Any:
    if kind == "Tensor":
        return tensors[name]
    if kind not in KINDS:
        raise ValueError(f"an input is a {kind}; only {' and '.join(KINDS)} can be replayed")
    fields = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{name}.")}
    return KINDS[kind](**fields)


def _named(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif value is not None:
        for field, part in vars(value).items():
            yield from _named(f"{name}.{field}", part)
