"""A policy's folder as this package writes it, read without torch.

config.json   model.safetensors   norm_stats.json   tokenizer.model
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbone.sources.headers import WEIGHTS, read_json, safetensors_header
from backbone.sources.places import Place, Weights
from backbone.sources.sizes import Stack, Vision
from vla.sources.policy_files import PolicyFiles
from vla.sources.sizes import Sizes

MODEL_TYPES = {"vla-pi0": False, "vla-pi05": True}  # whether the expert is π0.5's
STATS = "norm_stats.json"


def our_files(folder: Path) -> PolicyFiles:
    """Read all of the folder but the weights. `PolicyConfig.load` says more of a broken config.

    Raises FileNotFoundError if a file is missing, ValueError if one is broken.
    """
    from vla.data.stats import NormStats

    config = read_json(folder / "config.json")
    tensors = safetensors_header(folder / WEIGHTS)
    try:
        model = config["model"]
        sizes = _sizes(model, MODEL_TYPES[config["model_type"]])
        quantiles = config.get("quantiles")
        return PolicyFiles(
            origin="vla",
            folder=folder,
            weights=Weights(folder / WEIGHTS, tensors, {name: Place(name) for name in tensors}),
            sizes=sizes,
            cameras=tuple(config["cameras"]),
            state_dim=config["state_dim"],
            action_dim=config["action_dim"],
            horizon=model["expert"]["horizon"],
            prompt_length=config.get("prompt_length", 48),
            steps=config.get("steps", 10),
            optional_cameras=config.get("optional_cameras", False),
            quantiles=sizes.adaptive if quantiles is None else quantiles,
            epsilon=model["backbone"].get("numerics", {}).get("std_epsilon", 1e-6),
            relative_dims=tuple(config.get("relative_dims", ())),
            stats=NormStats.load(folder / STATS),
            still=config.get("still", 1e-4),
            discrete_state=config.get("discrete_state", True),
            numerics=model["backbone"].get("numerics", {}),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'config.json'} lacks {error}, which this package writes; copy it again"
        ) from error


def _sizes(model: Mapping[str, Any], adaptive: bool) -> Sizes:
    backbone, expert = model["backbone"], model["expert"]
    return Sizes(
        vision=Vision(**backbone["vision"]),
        language=_stack(backbone["language"]),
        vocab=backbone["vocab"],
        expert=_stack(expert["gemma"]),
        adaptive=adaptive,
        state_dim=expert["state_dim"],
        action_dim=expert["action_dim"],
    )


def _stack(values: Mapping[str, Any]) -> Stack:
    return Stack(**{name: values[name] for name in Stack.__dataclass_fields__})
