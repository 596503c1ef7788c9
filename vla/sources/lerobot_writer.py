"""The files beside the weights that LeRobot (0.4 to 0.6) wants of a π0 or π0.5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from vla.data.stats import NormStats
from vla.sources.lerobot import ACTION, IMAGES, POSTPROCESSOR, PREPROCESSOR, STATE, TYPES
from vla.sources.policy_files import PolicyFiles
from vla.sources.sizes import openpi_name

TOKENIZER = "google/paligemma-3b-pt-224"
NORMALISER, UNNORMALISER = "normalizer_processor", "unnormalizer_processor"
EPSILON = 1e-8
ABSOLUTE = "absolute"  # a word in the names of the actions that are not relative


def lerobot_companions(files: PolicyFiles, stats: NormStats, dtype: str) -> dict[str, bytes]:
    """File name → content: config.json, both processors and their statistics."""
    pre, post = _preprocessor(files), _postprocessor(files)
    table = save(_table(stats))
    companions = {"config.json": _json(_config(files, dtype))}
    for name, title, steps in (
        (PREPROCESSOR, "policy_preprocessor", pre),
        (POSTPROCESSOR, "policy_postprocessor", post),
    ):
        for i, step in enumerate(steps):
            if step["registry_name"] in (NORMALISER, UNNORMALISER):
                file = f"{title}_step_{i}_{step['registry_name']}.safetensors"
                step["state_file"] = file
                companions[file] = table
        companions[name] = _json({"name": title, "steps": steps})
    return companions


def _config(files: PolicyFiles, dtype: str) -> dict[str, Any]:
    features = _features(files)
    resolution = files.sizes.vision.resolution
    return {
        "type": next(name for name, adaptive in TYPES.items() if adaptive == files.sizes.adaptive),
        "n_obs_steps": 1,
        "input_features": {k: v for k, v in features.items() if k != ACTION},
        "output_features": {ACTION: features[ACTION]},
        "device": "cpu",
        "paligemma_variant": openpi_name(files.sizes.language, "gemma_2b"),
        "action_expert_variant": openpi_name(files.sizes.expert, "gemma_300m"),
        "dtype": "bfloat16" if dtype == "bfloat16" else "float32",
        "chunk_size": files.horizon,
        "n_action_steps": files.horizon,
        "max_state_dim": files.sizes.state_dim,
        "max_action_dim": files.sizes.action_dim,
        "num_inference_steps": files.steps,
        "use_relative_actions": bool(files.relative_dims),
        "relative_exclude_joints": [ABSOLUTE],
        "action_feature_names": _action_names(files),
        "image_resolution": [resolution, resolution],
        "empty_cameras": 0,
        "normalization_mapping": _modes(files),
        "tokenizer_max_length": files.prompt_length,
    }


def _preprocessor(files: PolicyFiles) -> list[dict[str, Any]]:
    tokenizer = {
        "max_length": files.prompt_length,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": TOKENIZER,
    }
    start = [_step("rename_observations_processor", rename_map={}), _step("to_batch_processor")]
    tokenise = _step("tokenizer_processor", **tokenizer)
    device = _step("device_processor", device="cpu", float_dtype=None)
    relative = _step(
        "relative_actions_processor",
        enabled=bool(files.relative_dims),
        exclude_joints=[ABSOLUTE],
        action_names=_action_names(files),
    )
    normalise = _step(NORMALISER, eps=EPSILON, features=_features(files), norm_map=_modes(files))
    if files.sizes.adaptive:
        tell_state = _step("pi05_prepare_state_tokenizer_processor_step")
        return [*start, relative, normalise, tell_state, tokenise, device]
    return [*start, _step("pi0_new_line_processor"), tokenise, device, relative, normalise]


def _postprocessor(files: PolicyFiles) -> list[dict[str, Any]]:
    action = {ACTION: _features(files)[ACTION]}
    return [
        _step(UNNORMALISER, eps=EPSILON, features=action, norm_map=_modes(files)),
        _step("absolute_actions_processor", enabled=bool(files.relative_dims)),
        _step("device_processor", device="cpu", float_dtype=None),
    ]


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


def _features(files: PolicyFiles) -> dict[str, Any]:
    size = files.sizes.vision.resolution
    cameras = {IMAGES + c: {"type": "VISUAL", "shape": [3, size, size]} for c in files.cameras}
    return {
        **cameras,
        STATE: {"type": "STATE", "shape": [files.state_dim]},
        ACTION: {"type": "ACTION", "shape": [files.action_dim]},
    }


def _modes(files: PolicyFiles) -> dict[str, str]:
    mode = "QUANTILES" if files.quantiles else "MEAN_STD"
    return {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}


def _action_names(files: PolicyFiles) -> list[str] | None:
    if not files.relative_dims:
        return None
    kinds = (
        "relative" if i in files.relative_dims else ABSOLUTE for i in range(files.action_dim or 0)
    )
    return [f"{kind}_{i}" for i, kind in enumerate(kinds)]


def _table(stats: NormStats) -> dict[str, np.ndarray]:
    table = {}
    for key, feature in ((STATE, stats.state), (ACTION, stats.actions)):
        for name in ("mean", "std", "q01", "q99", "min", "max"):
            values = getattr(feature, name)
            if values is not None:
                table[f"{key}.{name}"] = np.ascontiguousarray(values, np.float32)
    return table


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=4) + "\n").encode()
