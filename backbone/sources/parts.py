"""SigLIP and Gemma alone, as Hugging Face and big_vision write them: what stage 0 starts from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backbone.sources.big_vision import (
    Params,
    gemma_heads,
    gemma_places,
    read_params,
    vision_heads,
    vision_places,
)
from backbone.sources.headers import Tensor, read_json, safetensors_header
from backbone.sources.huggingface import (
    BUFFERS,
    gemma2_fields,
    language_sizes,
    part,
    vision_sizes,
)
from backbone.sources.layouts import HEAD, count, gemma_names, vision_names
from backbone.sources.paligemma_files import CONFIG
from backbone.sources.places import Place, Weights, by_new_name, check_floats, some
from backbone.sources.sizes import Stack, Vision, stack_of, vision_of

# What PaliGemma does not take of a SigLIP, by name.
SIGLIP_UNUSED = {
    r"text_model\.": "the text tower",
    r"txt/": "the text tower",
    r"vision_model\.head\.": "the pooling head",
    r"img/(MAPHead_\d+|head)/": "the pooling head",
    r"logit_(scale|bias)$|[tb]$": "of the contrastive loss",
}
TRANSFORMER = "transformer/"  # in front of Gemma's own releases


@dataclass(frozen=True)
class SigLIPFiles:
    """A SigLIP: weights under the names "vision.…"."""

    weights: Weights
    sizes: Vision


@dataclass(frozen=True)
class GemmaFiles:
    """A Gemma: weights under the names "language.…" and "embedding.weight"; gemma2 as in
    `PaliGemmaFiles`."""

    weights: Weights
    sizes: Stack
    gemma2: Mapping[str, Any] = field(default_factory=dict)


def siglip_files(path: Path) -> SigLIPFiles:
    """Find the image tower in a Hugging Face folder (`SiglipModel`, `SiglipVisionModel`) or in an
    .npz file of big_vision; `weights.unused` lists what is left out.

    Raises FileNotFoundError; ValueError if a weight is missing or of no known name.
    """
    if path.suffix == ".npz":
        params = read_params(path)
        weights = params.weights(vision_places(params, "img/"), _unused(params.keys, path))
        return SigLIPFiles(
            _no_strays(weights), vision_of(weights.shapes, "vision", vision_heads(params, "img/"))
        )
    config = _config(path, ("siglip", "siglip_vision_model"))
    tensors = safetensors_header(path)
    keys = by_new_name(tensors, _vision_key, path)
    depth = count(keys, r"vision_model\.encoder\.layers\.(\d+)\.")
    names = dict(vision_names("vision", "vision_model", depth))
    weights = _weights(path, tensors, keys, names, _unused(keys, path))
    vision = part(config, "vision_config", path) or config
    return SigLIPFiles(weights, vision_sizes(weights.shapes, vision, path))


def gemma_files(path: Path, rows: int) -> GemmaFiles:
    """Find a Gemma in a Hugging Face folder or an .npz file; its embedding has at least `rows`
    rows, and those beyond are left out (256,128 rows, of 256,000 that are used).

    Raises as `siglip_files` does.
    """
    if path.suffix == ".npz":
        params = read_params(path)
        prefix = next((p for p in ("", "llm/", TRANSFORMER) if _is_gemma(params, p)), "")
        weights = _no_strays(params.weights(gemma_places(params, prefix, rows), {}))
        sizes = stack_of(weights.shapes, "language", gemma_heads(params, prefix))
        return GemmaFiles(_of_rows(weights, rows), sizes)
    config = _config(path, ("gemma", "gemma2"))
    tensors = safetensors_header(path)
    keys = by_new_name(tensors, lambda key: key, path)
    depth = count(keys, r"model\.layers\.(\d+)\.")
    post_norms = any(".pre_feedforward_layernorm." in key for key in keys)
    names = gemma_names("language", "model", depth, post_norms)
    tokens = "model.embed_tokens.weight"
    names["embedding.weight"] = tokens if tokens in keys else HEAD
    unused = {HEAD: "the output head, a copy of the token embedding"} if HEAD in keys else {}
    unused = {} if names["embedding.weight"] == HEAD else unused
    weights = _of_rows(_weights(path, tensors, keys, names, unused, rows), rows)
    sizes = language_sizes(weights.shapes, config, path)
    return GemmaFiles(weights, sizes, gemma2_fields(config, weights.shapes, sizes, path))


def _vision_key(key: str) -> str:
    """Today's name: transformers 5.23 left the middle part out."""
    return re.sub(r"^(?=(embeddings|encoder|post_layernorm|head)\.)", "vision_model.", key)


def _weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    keys: Mapping[str, str],
    names: Mapping[str, str],
    unused: Mapping[str, str],
    rows: int | None = None,
) -> Weights:
    missing = [theirs for theirs in names.values() if theirs not in keys]
    if missing:
        known = {*names.values(), *unused}
        raise ValueError(
            f"{path} is not whole; it lacks {some(missing)}; "
            f"unknown in it: {some(k for n, k in keys.items() if n not in known)}"
        )
    places = {ours: Place(keys[theirs]) for ours, theirs in names.items()}
    if rows is not None:
        places["embedding.weight"] = Place(places["embedding.weight"].key, rows=rows)
    check_floats(path, tensors, places)
    left_out = {keys[name]: why for name, why in unused.items()}
    left_out |= {key: "a buffer, computed anew" for key in tensors if key.endswith(BUFFERS)}
    return _no_strays(Weights(path, tensors, places, left_out))


def _unused(names: Iterable[str], path: Path) -> dict[str, str]:
    return {
        name: why
        for name in names
        for pattern, why in SIGLIP_UNUSED.items()
        if re.match(pattern, name)
    }


def _no_strays(weights: Weights) -> Weights:
    if weights.stray:
        raise ValueError(
            f"{weights.path} holds weights that nobody knows: {some(weights.stray)}; give the file "
            "as it was published"
        )
    return weights


def _of_rows(weights: Weights, rows: int) -> Weights:
    found = weights.tensors[weights.places["embedding.weight"].key].shape[0]
    if found < rows:
        raise ValueError(
            f"{weights.path}: its token embedding has {found} rows, expected {rows} of text; give "
            "vocab= if the vocabulary is another"
        )
    return weights


def _is_gemma(params: Params, prefix: str) -> bool:
    return params.has(f"{prefix}embedder/input_embedding")


def _config(path: Path, models: tuple[str, ...]) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"nothing at {path}; give a Hugging Face folder or an .npz file")
    config = read_json(path / CONFIG)
    model = config.get("model_type")
    if model not in models:
        raise ValueError(
            f"{path / CONFIG} has model_type {model!r}, expected {' or '.join(map(repr, models))}"
        )
    return config
