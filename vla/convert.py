"""Policies and PaliGemmas from one format to another, weights bit for bit.

    lerobot          config.json, weights, both processors: `PI0Policy.from_pretrained` reads it
    openpi-pytorch   model.safetensors, config.json, assets
    huggingface      a PaliGemma, or the one inside, for `PaliGemmaForConditionalGeneration`
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

from backbone.design import PALIGEMMA
from backbone.pretrained import paligemma_config, save_config
from backbone.sources.headers import by_dtype, read_json
from backbone.sources.layouts import PaliGemmaDepths, huggingface_names
from backbone.sources.origin import is_paligemma, paligemma_files
from backbone.sources.paligemma_files import TOKENIZERS, PaliGemmaFiles
from backbone.sources.places import Place, Weights, some
from backbone.sources.read import reading_order
from backbone.sources.write import write_safetensors
from backbone.tokenizer import Tokenizer
from vla.data.stats import NormStats
from vla.layouts import (
    EXPERT_HEAD,
    LEROBOT_PREFIX,
    TOKENS,
    VLM_HEAD,
    Depths,
    port_names,
)
from vla.sources.lerobot_writer import lerobot_companions
from vla.sources.origin import policy_files
from vla.sources.policy_files import PolicyFiles
from vla.sources.read import read
from vla.sources.sizes import Sizes, openpi_name
from vla.sources.statistics import effective_stats

Format = Literal["lerobot", "openpi-pytorch", "huggingface", "vla"]
FORMATS: tuple[Format, ...] = ("lerobot", "openpi-pytorch", "huggingface", "vla")
EMBEDDING = "backbone.embedding.weight"
OPENPI_EPSILON, LEROBOT_EPSILON = 1e-6, 1e-8
EVERYWHERE = 1 << 20  # tokens, more than any prompt has
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
    """Write the policy or PaliGemma in `source` to the new folder `destination`.

    asset: which robot's statistics, of an openpi folder that has several. horizon: actions in a
    chunk, where `source` does not say. stats: a norm_stats.json instead of the source's.
    tokenizer: PaliGemma's, for "vla", where `source` has none. A PaliGemma has no robot: it goes to
    "huggingface" and "vla" only.
    Raises FileExistsError if `destination` exists; ValueError as `Policy.from_pretrained` does, or
    if the format cannot hold the policy. A folder appears under its name only once it is whole.
    """
    source, destination = Path(source), Path(destination)
    if to not in FORMATS:
        raise ValueError(f"no format {to!r}; choose one of {', '.join(FORMATS)}")
    if destination.exists():
        raise FileExistsError(f"{destination} exists; give a new folder, nothing is overwritten")
    if is_paligemma(source):
        _convert_paligemma(paligemma_files(source), destination, to, tokenizer)
        return
    files = policy_files(source, asset)
    if files.origin == "vla" and to != "vla":
        backbone = read_json(files.folder / "config.json")["model"]["backbone"]
        _check_design(backbone.get("design", {}), files.sizes.vision.depth, source, to)
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


def _check_design(design: Mapping[str, Any], depth: int, source: Path, to: Format) -> None:
    """Raise ValueError for a model that other implementations would run as another one."""
    own = {k: v for k, v in design.items() if v != getattr(PALIGEMMA, k, None)}
    if own or not depth:
        what = own or "no image encoder"
        raise ValueError(f"{source} is built as {to} can't say ({what}); convert it to vla alone")


def _to_lerobot(files: PolicyFiles, folder: Path) -> None:
    _check_told(files)
    epsilon = 0 if files.quantiles else LEROBOT_EPSILON  # LeRobot divides by ranges as they are
    companions = lerobot_companions(files, effective_stats(files, epsilon), _dtype(files.weights))
    for name, text in companions.items():
        (folder / name).write_bytes(text)
    names = port_names(_depths(files.sizes))
    places = {LEROBOT_PREFIX + names[ours]: p for ours, p in files.weights.places.items()}
    places[LEROBOT_PREFIX + VLM_HEAD] = files.weights.places[EMBEDDING]
    head = _expert_head(files, LEROBOT_PREFIX + EXPERT_HEAD)
    _write(files.weights, folder, places, {"format": "pt"}, head)


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
        "precision": _dtype(files.weights),
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
    _write(files.weights, folder, places, {TOKENS: VLM_HEAD}, _expert_head(files, EXPERT_HEAD))


def _to_huggingface(files: PolicyFiles, folder: Path) -> None:
    if files.sizes.vision.heads is None:
        raise ValueError(f"{files.folder}: its weights do not tell how many heads vision has")
    inside = {
        ours.removeprefix("backbone."): place
        for ours, place in files.weights.places.items()
        if ours.startswith("backbone.")
    }
    _write_huggingface(replace(files.weights, places=inside), files.sizes, {}, folder)


def _write_huggingface(
    weights: Weights, sizes: Sizes, gemma2: Mapping[str, Any], folder: Path
) -> None:
    """weights: under the names of `PaliGemma`. gemma2: as in `PaliGemmaFiles`."""
    _write_json(folder / "config.json", huggingface_config(sizes, _dtype(weights), gemma2))
    depths = PaliGemmaDepths(sizes.vision.depth, sizes.language.depth, bool(gemma2))
    names = huggingface_names(depths)
    places = {names[ours]: place for ours, place in weights.places.items()}
    _write(weights, folder, places, {"format": "pt"})


def _convert_paligemma(files: PaliGemmaFiles, destination: Path, to: Format, tokenizer) -> None:
    if to not in ("huggingface", "vla"):
        raise ValueError(
            f"{files.path} is a PaliGemma without an action expert; it converts to huggingface or "
            f"vla, not to {to}"
        )
    if files.weights.stray:
        raise ValueError(
            f"{files.path} holds weights that no PaliGemma has: {some(files.weights.stray)}"
        )
    if to != "vla":
        _check_design(files.design, files.vision.depth, files.path, to)
    gemma2 = {k: v for k, v in files.gemma2.items() if files.gemma2.get("post_norms")}
    with _new_folder(destination) as folder:
        if to == "huggingface":
            sizes = Sizes(files.vision, files.language, files.vocab)
            _write_huggingface(files.weights, sizes, gemma2, folder)
            _copy_tokenizer(files.folder, folder)
        else:
            given = tokenizer or files.tokenizer
            if given is not None:
                Tokenizer.from_pretrained(given).save(folder)
            places = {name: files.weights.places[name] for name in sorted(files.weights.places)}
            _write(files.weights, folder, places, {})
            save_config(paligemma_config(files), folder)


def _to_vla(source: Path, folder: Path, asset, stats, tokenizer) -> None:
    from vla.policy import Policy

    policy = Policy.from_pretrained(source, asset=asset, stats=stats, tokenizer=tokenizer)
    policy.save_pretrained(folder)


def huggingface_config(
    sizes: Sizes, dtype: str, gemma2: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """config.json of `PaliGemmaForConditionalGeneration` with these sizes.

    gemma2: as in `PaliGemmaFiles`. Without a window, transformers gets one that reaches everywhere.
    """
    text, vision = sizes.language, sizes.vision
    config = {
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
    if gemma2:
        scale = gemma2["query_scale"]
        config["text_config"] |= {
            "model_type": "gemma2",
            "query_pre_attn_scalar": text.head_dim if scale is None else round(scale**-2),
            "attn_logit_softcapping": gemma2["attention_cap"],
            "final_logit_softcapping": gemma2["logit_cap"],
            "sliding_window": gemma2["window"] or EVERYWHERE,
        }
    return config


def _write(
    weights: Weights,
    folder: Path,
    places: Mapping[str, Place],
    metadata: Mapping[str, str],
    empty_head: tuple[str, tuple[int, int]] | None = None,
) -> None:
    """model.safetensors with `places`, and an untrained output head that a reader insists on."""
    shapes = {
        name: (weights.shape(places[name]), weights.tensors[places[name].key].dtype)
        for name in reading_order(places)
    }
    tensors = read(replace(weights, places=places))
    if empty_head is not None:
        name, shape = empty_head
        shapes[name] = (shape, _dtype(weights))
        tensors = _and_zeros(tensors, name, shape, _dtype(weights))
    write_safetensors(folder / "model.safetensors", shapes, tensors, metadata)


def _expert_head(files: PolicyFiles, name: str) -> tuple[str, tuple[int, int]]:
    assert files.sizes.expert is not None
    return name, (files.sizes.vocab, files.sizes.expert.width)


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


def _dtype(weights: Weights) -> str:
    """The dtype of most weights."""
    used = {place.key for place in weights.places.values()}
    return next(iter(by_dtype({key: weights.tensors[key] for key in used})))


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
