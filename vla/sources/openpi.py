"""A policy's folder as openpi writes it, from PyTorch or from JAX.

    PyTorch   model.safetensors   config.json (horizon, precision)   assets/<robot>/norm_stats.json
    JAX       params/ (orbax)                                        assets/<robot>/norm_stats.json

A base model holds statistics of several robots. Neither says how its robot's observations become
openpi's state and three pictures: that is code of openpi, chosen by the name of a training config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backbone.sources.headers import WEIGHTS, Tensor, read_json
from backbone.sources.places import Weights, check_floats, some
from backbone.sources.sizes import Heads
from vla.layouts import Depths, jax_places
from vla.sources.orbax import Orbax
from vla.sources.policy_files import PolicyFiles
from vla.sources.port import port_weights
from vla.sources.sizes import Sizes, sizes_of

if TYPE_CHECKING:
    from vla.data.stats import FeatureStats, NormStats

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
PROMPT_LENGTHS = {False: 48, True: 200}  # π0, π0.5
STATS = "norm_stats.json"
PARAMS = "params"


def pytorch_files(folder: Path, asset: str | None = None) -> PolicyFiles:
    """Read a folder of openpi's PyTorch port but for the weights themselves.

    asset: which robot's statistics. Raises as `lerobot_files` does; config.json may be missing.
    """
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    weights = port_weights(folder / WEIGHTS)
    return _files("openpi PyTorch", folder, weights, config.get("action_horizon"), asset)


def jax_files(folder: Path, asset: str | None = None) -> PolicyFiles:
    """Read a checkpoint of openpi's JAX training, or its `params` folder, but for the weights."""
    params = folder / PARAMS if (folder / PARAMS).is_dir() else folder
    checkpoint = params.parent if params.name == PARAMS else params
    return _files("openpi JAX", checkpoint, jax_weights(params), None, asset)


def jax_weights(path: Path) -> Weights:
    """Find every parameter of π0 or π0.5 in an orbax folder.

    Raises ValueError if some are missing, or LoRA matrices stand beside them.
    """
    tensors = Orbax(path).tensors
    lora = [key for key in tensors if "lora" in key]
    if lora:
        raise ValueError(
            f"{path} holds LoRA matrices ({some(lora, 2)}) beside the weights they change; merge "
            "them in openpi first"
        )
    places = jax_places(_depths(tensors))
    missing = sorted({p.key for p in places.values()} - tensors.keys())
    if missing:
        known = {p.key for p in places.values()}
        raise ValueError(
            f"{path} does not hold a whole π0 or π0.5; it lacks {some(missing)}; "
            f"unknown in it: {some(sorted(tensors.keys() - known))}"
        )
    check_floats(path, tensors, places)
    return Weights(path, tensors, places, heads=_heads(tensors))


def _depths(tensors: Mapping[str, Tensor]) -> Depths:
    def layers(key: str) -> int:
        return tensors[key].shape[0] if key in tensors else 1

    llm = "PaliGemma/llm/layers"
    return Depths(
        vision=layers("PaliGemma/img/Transformer/encoderblock/LayerNorm_0/scale"),
        language=layers(f"{llm}/mlp/linear"),
        expert=layers(f"{llm}/mlp_1/linear"),
        adaptive=any("norm_1/Dense_0" in key for key in tensors),
    )


def _heads(tensors: Mapping[str, Tensor]) -> Heads:
    vision = "PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
    kv = [tensors[f"PaliGemma/llm/layers/attn/kv_einsum{s}/w"].shape for s in ("", "_1")]
    language, expert = ((shape[2], shape[4]) for shape in kv)  # [L, 2, K, D, H]
    return Heads(tensors[vision].shape[2], language, expert)


def _files(
    origin, folder: Path, weights: Weights, horizon: int | None, asset: str | None
) -> PolicyFiles:
    sizes = sizes_of(weights.shapes, weights.heads)
    files = PolicyFiles(
        origin=origin,
        folder=folder,
        weights=weights,
        sizes=replace(sizes, state_dim=sizes.state_dim or sizes.action_dim),
        cameras=CAMERAS,
        state_dim=None,
        action_dim=None,
        horizon=horizon,
        prompt_length=PROMPT_LENGTHS[sizes.adaptive],
        quantiles=sizes.adaptive,
        epsilon=1e-6,
    )
    try:
        stats = _norm_stats(folder, asset, sizes)
    except ValueError as error:
        return replace(files, stats_fault=str(error))
    return replace(files, stats=stats, state_dim=stats.state.dim, action_dim=stats.actions.dim)


def _norm_stats(folder: Path, asset: str | None, sizes: Sizes) -> NormStats:
    from vla.data.stats import NormStats

    stats = NormStats.load(_stats_file(folder, asset))
    return NormStats(_robots_own(stats.state), _robots_own(stats.actions))


def _stats_file(folder: Path, asset: str | None) -> Path:
    root = folder / "assets"
    found = {str(p.parent.relative_to(root)): p for p in sorted(root.rglob(STATS))}
    if asset is not None and asset in found:
        return found[asset]
    if asset is not None:
        raise ValueError(f"{root} has no asset {asset!r}; it has {some(found, 20)}")
    if not found:
        raise ValueError(
            f"{folder} has no assets/<robot>/{STATS}; copy the checkpoint's assets folder beside "
            "its weights, or give statistics with stats="
        )
    if len(found) > 1:
        raise ValueError(
            f"{root} has statistics of {len(found)} robots; choose one with asset=: "
            f"{', '.join(found)}"
        )
    return next(iter(found.values()))


def _robots_own(stats: FeatureStats) -> FeatureStats:
    """Without the dimensions that openpi pads with: at the end, mean and std 0."""
    padded = (stats.mean == 0) & (stats.std == 0)
    dims = int(np.flatnonzero(~padded).max(initial=-1)) + 1 or stats.dim
    arrays = ("mean", "std", "q01", "q99", "min", "max")
    cut = {k: None if (v := getattr(stats, k)) is None else v[:dims] for k in arrays}
    return replace(stats, **cut)
