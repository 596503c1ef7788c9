"""Policies from one format to another, weights bit for bit.

    lerobot          config.json, weights, both processors: `PI0Policy.from_pretrained` reads it
    openpi-pytorch   model.safetensors, config.json, assets
    huggingface      the PaliGemma inside, for `PaliGemmaForConditionalGeneration`
    vla              this package's own folder

Weights go from file to file, one tensor at a time and in the dtype that they have; no model is
built, but for "vla".
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from backbone.sources.headers import by_dtype
from backbone.sources.places import Place
from backbone.sources.read import reading_order
from backbone.sources.write import write_safetensors
from vla.data.stats import NormStats
from vla.layouts import (
    EXPERT_HEAD,
    LEROBOT_PREFIX,
    TOKENS,
    VLM,
    VLM_HEAD,
    Depths,
    port_names,
)
from vla.sources.lerobot_writer import lerobot_companions
from vla.sources.origin import policy_files
from vla.sources.policy_files import TOKENIZERS, PolicyFiles
from vla.sources.read import read
from vla.sources.sizes import Sizes, openpi_name
from vla.sources.statistics import effective_stats

Format = Literal["lerobot", "openpi-pytorch", "huggingface", "vla"]
FORMATS: tuple[Format, ...] = ("lerobot", "openpi-pytorch", "huggingface", "vla")
EMBEDDING = "backbone.embedding.weight"
OPENPI_EPSILON, LEROBOT_EPSILON = 1e-6, 1e-8
IMAGE_TOKEN = 257_152  # Hugging Face's id of <image>, the first after PaliGemma's own


def convert(
    source: str | Path,
    destination: str | Path,
    to: Format,
    *,
    asset: str | None = None,
    horizon: int | None = None,
    stats: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> None:
    """Write the policy in `source` to the new folder `destination`.

    asset: which robot's statistics, of an openpi folder that has several. horizon: actions in a
    chunk, where `source` does not say. stats: a norm_stats.json instead of the source's.
    tokenizer: PaliGemma's, for "vla", where `source` has none.
    Raises FileExistsError if `destination` exists; ValueError as `Policy.from_pretrained` does, or
    if the format cannot hold the policy. A folder appears under its name only once it is whole.
    """
    source, destination = Path(source), Path(destination)
    if to not in FORMATS:
        raise ValueError(f"no format {to!r}; choose one of {', '.join(FORMATS)}")
    if destination.exists():
        raise FileExistsError(f"{destination} exists; give a new folder, nothing is overwritten")
    files = policy_files(source, asset)
    if stats is not None:
        files = _with_stats(files, NormStats.load(stats))
    files = replace(files, horizon=files.horizon or horizon)
    with _new_folder(destination) as folder:
        match to:
            case "lerobot":
                _to_lerobot(files, folder)
            case "openpi-pytorch":
                _to_openpi(files, folder, asset)
            case "huggingface":
                _to_huggingface(files, folder)
            case "vla":
                _to_vla(source, folder, asset, stats, tokenizer)
        if to != "vla":
            _copy_tokenizer(files.folder, folder)


def _to_lerobot(files: PolicyFiles, folder: Path) -> None:
    _check_told(files)
    epsilon = 0 if files.quantiles else LEROBOT_EPSILON  # LeRobot divides by ranges as they are
    companions = lerobot_companions(files, effective_stats(files, epsilon), _dtype(files))
    for name, text in companions.items():
        (folder / name).write_bytes(text)
    names = port_names(_depths(files.sizes))
    places = {LEROBOT_PREFIX + names[ours]: p for ours, p in files.weights.places.items()}
    places[LEROBOT_PREFIX + VLM_HEAD] = files.weights.places[EMBEDDING]
    _write(files, folder, places, {"format": "pt"}, LEROBOT_PREFIX + EXPERT_HEAD)


def _to_openpi(files: PolicyFiles, folder: Path, asset: str | None) -> None:
    if files.relative_dims:
        raise ValueError(
            f"{files.folder} predicts relative actions, which openpi keeps in a training config "
            "and in no file; convert it to lerobot or vla"
        )
    config = {
        "action_dim": files.sizes.action_dim,
        "action_horizon": files.horizon,
        "paligemma_variant": openpi_name(files.sizes.language, "gemma_2b"),
        "action_expert_variant": openpi_name(files.sizes.expert, "gemma_300m"),
        "precision": _dtype(files),
    }
    if files.horizon is None:
        raise ValueError(
            f"{files.folder} does not say how many actions a chunk has; give --horizon"
        )
    _write_json(folder / "config.json", config)
    if files.origin.startswith("openpi") and asset is None and (files.folder / "assets").is_dir():
        shutil.copytree(files.folder / "assets", folder / "assets")
    elif files.stats is not None:
        robot = folder / "assets" / (asset or "robot")
        robot.mkdir(parents=True)
        effective_stats(files, OPENPI_EPSILON).save(robot / "norm_stats.json")
    else:
        raise ValueError(f"{files.stats_fault}; or with --stats")
    names = port_names(_depths(files.sizes)) | {EMBEDDING: VLM_HEAD}  # tied, kept once
    places = {names[ours]: place for ours, place in files.weights.places.items()}
    _write(files, folder, places, {TOKENS: VLM_HEAD}, EXPERT_HEAD)


def _to_huggingface(files: PolicyFiles, folder: Path) -> None:
    if files.sizes.vision.heads is None:
        raise ValueError(f"{files.folder}: its weights do not tell how many heads vision has")
    _write_json(folder / "config.json", huggingface_config(files.sizes, _dtype(files)))
    names = port_names(_depths(files.sizes))
    places = {
        names[ours].removeprefix(VLM): place
        for ours, place in files.weights.places.items()
        if ours.startswith("backbone.")
    }
    _write(files, folder, places, {"format": "pt"})


def _to_vla(source: Path, folder: Path, asset, stats, tokenizer) -> None:
    from vla.policy import Policy

    policy = Policy.from_pretrained(source, asset=asset, stats=stats, tokenizer=tokenizer)
    policy.save_pretrained(folder)


def huggingface_config(sizes: Sizes, dtype: str) -> dict[str, Any]:
    """config.json of `PaliGemmaForConditionalGeneration` with these sizes."""
    text, vision = sizes.language, sizes.vision
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "dtype": dtype,
        "projection_dim": text.width,
        "hidden_size": text.width,
        "image_token_index": IMAGE_TOKEN if sizes.vocab >= IMAGE_TOKEN else sizes.vocab,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "text_config": {
            "model_type": "gemma",
            "vocab_size": sizes.vocab,
            "hidden_size": text.width,
            "intermediate_size": text.mlp,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "head_dim": text.head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_image_tokens": (vision.resolution // vision.patch) ** 2,
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "patch_size": vision.patch,
            "image_size": vision.resolution,
            "projection_dim": text.width,
            "vision_use_head": False,
        },
    }


def _write(
    files: PolicyFiles,
    folder: Path,
    places: Mapping[str, Place],
    metadata: Mapping[str, str],
    empty_head: str | None = None,
) -> None:
    """model.safetensors with `places`, and an untrained output head that a reader insists on."""
    weights = files.weights
    shapes = {
        name: (weights.shape(places[name]), weights.tensors[places[name].key].dtype)
        for name in reading_order(places)
    }
    tensors = read(replace(weights, places=places))
    if empty_head is not None:
        assert files.sizes.expert is not None
        shape = (files.sizes.vocab, files.sizes.expert.width)
        shapes[empty_head] = (shape, _dtype(files))
        tensors = _and_zeros(tensors, empty_head, shape, _dtype(files))
    write_safetensors(folder / "model.safetensors", shapes, tensors, metadata)


def _and_zeros(tensors, name: str, shape, dtype: str) -> Iterator[tuple[str, Tensor]]:
    yield from tensors
    yield name, torch.zeros(shape, dtype=getattr(torch, dtype))


def _check_told(files: PolicyFiles) -> None:
    if files.stats is None:
        raise ValueError(f"{files.stats_fault}; or with --stats")
    if files.horizon is None:
        raise ValueError(
            f"{files.folder} does not say how many actions a chunk has; give --horizon"
        )
    if files.sizes.adaptive and not files.discrete_state:
        raise ValueError(
            f"{files.folder} does not tell the state in its prompt, as LeRobot's π0.5 always does"
        )


def _depths(sizes: Sizes) -> Depths:
    assert sizes.expert is not None
    return Depths(sizes.vision.depth, sizes.language.depth, sizes.expert.depth, sizes.adaptive)


def _dtype(files: PolicyFiles) -> str:
    """The dtype of most weights."""
    used = {place.key for place in files.weights.places.values()}
    return next(iter(by_dtype({key: files.weights.tensors[key] for key in used})))


def _with_stats(files: PolicyFiles, stats: NormStats) -> PolicyFiles:
    return replace(files, stats=stats, state_dim=stats.state.dim, action_dim=stats.actions.dim)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in TOKENIZERS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` that takes its name at the end, and is removed on failure."""
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
