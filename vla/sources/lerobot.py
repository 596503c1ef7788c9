"""A policy's folder as LeRobot writes it (0.4 to 0.6), and a Hugging Face clone of one.

config.json   model.safetensors   policy_preprocessor.json   policy_postprocessor.json
policy_preprocessor_step_N_….safetensors   policy_postprocessor_step_N_….safetensors: statistics
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backbone.sources.headers import read_json
from backbone.sources.places import Weights
from vla.sources.policy_files import PolicyFiles
from vla.sources.port import port_weights
from vla.sources.sizes import sizes_of

if TYPE_CHECKING:
    from vla.data.stats import FeatureStats, NormStats

TYPES = {"pi0": False, "pi05": True}  # whether the expert is π0.5's
IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
EMPTY_CAMERA = "empty_camera_"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
# Which statistics a normalisation mode reads: (low, high) of the range that becomes [-1, 1].
RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}

Steps = Mapping[str, Mapping[str, Any]]


def lerobot_files(folder: Path) -> PolicyFiles:
    """Read all of the folder but the weights themselves.

    Raises FileNotFoundError if a file is missing; ValueError if the policy is of another type, its
    weights are not of that type, or its files contradict one another. Statistics that cannot be
    used are told in `stats_fault`, since a caller may bring others.
    """
    config = read_json(folder / "config.json")
    _check_type(config, folder)
    weights = port_weights(folder)
    _check_expert(config["type"], weights, folder)
    before, after = _steps(folder / PREPROCESSOR), _steps(folder / POSTPROCESSOR)
    sizes = sizes_of(weights.shapes)
    cameras = _cameras(config, before)
    state_dim = _dims(config, "input_features", STATE, config.get("max_state_dim", 32))
    action_dim = _dims(config, "output_features", ACTION, sizes.action_dim)
    files = PolicyFiles(
        origin="LeRobot",
        folder=folder,
        weights=weights,
        sizes=replace(sizes, state_dim=config.get("max_state_dim", sizes.state_dim)),
        cameras=cameras,
        state_dim=state_dim,
        action_dim=action_dim,
        horizon=config.get("chunk_size"),
        prompt_length=_prompt_length(config, before),
        steps=config.get("num_inference_steps", 10),
        relative_dims=_relative_dims(before, after, action_dim),
        notes=_notes(config),
    )
    return _with_stats(files, folder, before, after)


def _check_type(config: Mapping[str, Any], folder: Path) -> None:
    kind = config.get("type")
    if kind not in TYPES:
        raise ValueError(
            f"{folder} holds a LeRobot policy of type {kind!r}; of LeRobot's policies "
            f"{' and '.join(TYPES)} load here"
        )
    for option in ("use_visual_memory", "use_proprioceptive_memory"):
        if config.get(option):
            raise ValueError(f"{folder} was trained with {option}, which this package cannot run")
    if config.get("use_peft") or (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds a PEFT adapter, not whole weights; merge it into its base model with "
            "peft's merge_and_unload and save the policy"
        )


def _check_expert(kind: str, weights: Weights, folder: Path) -> None:
    adaptive = any(name.endswith("modulation.weight") for name in weights.places)
    if adaptive != TYPES[kind]:
        held = "π0.5" if adaptive else "π0"
        right = next(k for k, v in TYPES.items() if v == adaptive)
        raise ValueError(
            f"{folder}: config.json says type {kind!r} but the weights are {held}'s; "
            f'put the right config.json beside them, with "type": "{right}"'
        )


def _steps(path: Path) -> Steps:
    """The steps of a processor's file by their registry names."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it says how states and actions are normalised. Policies saved by "
            "LeRobot before 0.4 get one from its migrate_policy_normalization script"
        )
    steps = read_json(path).get("steps", [])
    return {step.get("registry_name", step.get("class", "")): step for step in steps}


def _step_config(steps: Steps, name: str) -> Mapping[str, Any]:
    return steps.get(name, {}).get("config", {})


def _cameras(config: Mapping[str, Any], before: Steps) -> tuple[str, ...]:
    """The robot's names for the cameras, in the model's order.

    Empty cameras are masked in LeRobot, which is the same as leaving them out.
    """
    renamed = _step_config(before, "rename_observations_processor").get("rename_map") or {}
    robots = {model: robot for robot, model in renamed.items()}
    keys = [k for k, v in config.get("input_features", {}).items() if v.get("type") == "VISUAL"]
    named = [robots.get(key, key) for key in keys if EMPTY_CAMERA not in key]
    return tuple(key.removeprefix(IMAGES) for key in named)


def _dims(config: Mapping[str, Any], group: str, key: str, default: int | None) -> int | None:
    feature = (config.get(group) or {}).get(key)
    return feature["shape"][0] if feature else default


def _prompt_length(config: Mapping[str, Any], before: Steps) -> int:
    tokenizer = _step_config(before, "tokenizer_processor")
    length = tokenizer.get("max_length") or config.get("tokenizer_max_length")
    return length or (200 if TYPES[config["type"]] else 48)


def _relative_dims(before: Steps, after: Steps, action_dim: int | None) -> tuple[int, ...]:
    """Dimensions predicted relative to the state: those whose name holds no excluded word."""
    step = _step_config(before, "relative_actions_processor")
    back = _step_config(after, "absolute_actions_processor")
    if not (step.get("enabled") and back.get("enabled")):
        return ()
    words = [str(word).lower() for word in step.get("exclude_joints") or () if word]
    names: Sequence[str] = step.get("action_names") or ()
    excluded = [any(word in str(name).lower() for word in words) for name in names]
    return tuple(i for i in range(action_dim or 0) if i >= len(excluded) or not excluded[i])


def _notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    steps, chunk = config.get("n_action_steps"), config.get("chunk_size")
    if steps and chunk and steps < chunk:
        return (f"LeRobot plays {steps} of {chunk} actions before it looks again",)
    return ()


# --- statistics -----------------------------------------------------------------------------------


def _with_stats(files: PolicyFiles, folder: Path, before: Steps, after: Steps) -> PolicyFiles:
    forward, back = before.get("normalizer_processor", {}), after.get("unnormalizer_processor", {})
    config = forward.get("config", {})
    modes = config.get("norm_map", {})
    mode = {"STATE": modes.get("STATE", "IDENTITY")}
    mode["ACTION"] = back.get("config", {}).get("norm_map", {}).get("ACTION", "IDENTITY")
    quantiles = any(m in RANGES for m in mode.values())
    epsilon = 0 if quantiles else config.get("eps", 1e-8)  # ranges are divided by as they are
    files = replace(files, quantiles=quantiles, epsilon=epsilon)
    try:
        tables = [_table(folder, step) for step in (forward, back)]
        return replace(files, stats=_norm_stats(files, tables, mode))
    except (KeyError, ValueError) as error:
        return replace(files, stats_fault=f"{folder}: {error.args[0]}")


def _table(folder: Path, step: Mapping[str, Any]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    name = step.get("state_file")
    if name is None:
        return {}
    if not (folder / name).is_file():
        raise ValueError(f"{name}, the file of statistics, is missing; copy the whole folder again")
    try:
        return load_file(folder / name)
    except SafetensorError as error:
        raise ValueError(f"{name} is not a whole safetensors file; copy it again") from error


def _norm_stats(
    files: PolicyFiles, tables: Sequence[Mapping[str, np.ndarray]], mode: Mapping[str, str]
) -> NormStats:
    from vla.data.stats import NormStats

    dims = {STATE: files.state_dim, ACTION: files.action_dim}
    features = [
        _feature(key, table, mode[kind], files.quantiles, dims[key] or 0)
        for key, kind, table in ((STATE, "STATE", tables[0]), (ACTION, "ACTION", tables[1]))
    ]
    return NormStats(*features)


def _feature(
    key: str, table: Mapping[str, np.ndarray], mode: str, quantiles: bool, dims: int
) -> FeatureStats:
    """One feature's statistics, told by mean and std, or where `quantiles` by q01 and q99, whatever
    mode LeRobot has for it: each mode is a shift and a scale."""
    from vla.data.stats import FeatureStats

    stats = {k.removeprefix(f"{key}."): v for k, v in table.items() if k.startswith(f"{key}.")}
    if mode == "IDENTITY":
        one, zero = np.ones(dims, np.float32), np.zeros(dims, np.float32)
        return FeatureStats(zero, one, -one, one)
    wanted = RANGES.get(mode, ("mean", "std"))
    missing = [name for name in wanted if name not in stats]
    if missing:
        raise ValueError(
            f"there are no statistics of {key} ({mode} needs {' and '.join(wanted)}); "
            "give some with stats="
        )
    first, second = (np.asarray(stats[name], np.float32) for name in wanted)
    mean = np.asarray(stats.get("mean", first), np.float32)
    std = np.asarray(stats.get("std", np.ones_like(first)), np.float32)
    low, high = (first, second) if mode in RANGES else (first - second, first + second)
    if not quantiles:
        low, high = stats.get("q01"), stats.get("q99")
    return FeatureStats(mean, std, low, high, stats.get("min"), stats.get("max"))
