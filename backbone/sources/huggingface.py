"""A PaliGemma or PaliGemma 2 as transformers writes it, from 4.41 to 5.23.

config.json   model.safetensors, or model.safetensors.index.json with its shards
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from backbone.sources.headers import read_json, safetensors_header
from backbone.sources.layouts import (
    HEAD,
    HF_TOKENS,
    huggingface_depths,
    huggingface_key,
    huggingface_names,
)
from backbone.sources.paligemma_files import CONFIG, VOCAB, PaliGemmaFiles
from backbone.sources.places import Place, Weights, by_new_name, check_floats, some
from backbone.sources.sizes import STACKS, Stack, Vision, stack_of, vision_of

MODEL_TYPE = "paligemma"
ROWS = 257_216  # of the embedding in published files: `VOCAB` and 64 that were never trained
BUFFERS = (".position_ids", ".inv_freq")  # stored by some releases, computed by all
# transformers' defaults, for what a config.json leaves out: `PaliGemmaConfig`, `Gemma2Config`
HEAD_DIM = 256
GEMMA2 = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def huggingface_files(folder: Path) -> PaliGemmaFiles:
    """Read all of the folder but the weights themselves.

    Raises FileNotFoundError if a file is missing; ValueError if one is broken, lacks a weight or
    holds one twice, or if config.json and the weights' shapes disagree.
    """
    config = read_json(folder / CONFIG)
    text = part(config, "text_config", folder)
    if config.get("tie_word_embeddings") is False or text.get("tie_word_embeddings") is False:
        raise ValueError(
            f"{folder / CONFIG} has tie_word_embeddings false: an output head that is not the "
            "token embedding, which no PaliGemma has"
        )
    weights = huggingface_weights(folder)
    shapes = weights.shapes
    vision = vision_sizes(shapes, part(config, "vision_config", folder), folder)
    language = language_sizes(shapes, text, folder)
    rows = weights.tensors[weights.places["embedding.weight"].key].shape[0]
    stated = text.get("vocab_size", rows)
    if stated != rows and {stated, rows} != {VOCAB, ROWS}:
        agree(folder, [("text_config.vocab_size", stated, rows)])
    agree(folder, [("projection_dim", config.get("projection_dim"), language.width)])
    return PaliGemmaFiles(
        origin="Hugging Face",
        path=folder,
        weights=weights,
        vision=vision,
        language=language,
        vocab=shapes["embedding.weight"][0],
        gemma2=gemma2_fields(text, shapes, language, folder),
    )


def huggingface_weights(folder: Path) -> Weights:
    """Find every parameter, by today's names or older ones.

    The embedding may stand under its own name, under the tied output head's, or both; its rows
    beyond the vocabulary are left out. Strays are left to the caller.
    """
    tensors = safetensors_header(folder)
    keys = by_new_name(tensors, huggingface_key, folder)
    names = huggingface_names(huggingface_depths(keys))
    if HF_TOKENS not in keys and HEAD in keys:
        names["embedding.weight"] = HEAD
    known = {*names.values(), HEAD}
    missing = [theirs for theirs in names.values() if theirs not in keys]
    if missing or "language.blocks.0.mlp.up_proj.weight" not in names:
        raise ValueError(
            f"{folder} does not hold a whole PaliGemma; it lacks {some(missing)}; "
            f"unknown in it: {some(k for n, k in keys.items() if n not in known)}"
        )
    places = {ours: Place(keys[theirs]) for ours, theirs in names.items()}
    rows = tensors[places["embedding.weight"].key].shape[0]
    if rows > VOCAB:
        places["embedding.weight"] = Place(places["embedding.weight"].key, rows=VOCAB)
    check_floats(folder, tensors, places)
    unused = {key: "a buffer, computed anew" for key in tensors if key.endswith(BUFFERS)}
    if HEAD in keys and names["embedding.weight"] != HEAD:
        unused[keys[HEAD]] = "the output head, a copy of the token embedding"
    return Weights(folder, tensors, places, unused)


def vision_sizes(shapes, config: Mapping[str, Any], folder: Path) -> Vision:
    """Of the parameters "vision.…", with the heads that a `vision_config` tells.

    Raises ValueError if they disagree, or the heads are not told.
    """
    vision = vision_of(shapes, "vision", config.get("num_attention_heads"))
    if vision.heads is None:
        raise ValueError(
            f"{folder / CONFIG} does not say how many heads vision has; add "
            '"num_attention_heads" to its "vision_config"'
        )
    names = {
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "intermediate_size": vision.mlp,
        "patch_size": vision.patch,
        "image_size": vision.resolution,
    }
    agree(folder, ((f"vision_config.{n}", config.get(n), v) for n, v in names.items()))
    return vision


def language_sizes(shapes, config: Mapping[str, Any], folder: Path) -> Stack:
    """Of the parameters "language.…", with the head size that a `text_config` tells."""
    guess = stack_of(shapes, "language", (1, HEAD_DIM))
    known = [s for s in STACKS.values() if s.width == guess.width and s.depth == guess.depth]
    head_dim = config.get("head_dim") or (known[0].head_dim if known else HEAD_DIM)
    key_rows = shapes["language.blocks.0.attention.k_proj.weight"][0]
    if key_rows % head_dim:
        raise ValueError(
            f"{folder / CONFIG}: heads of {head_dim} (text_config.head_dim) do not divide the "
            f"{key_rows} rows of k_proj; put the right head_dim there"
        )
    stack = stack_of(shapes, "language", (key_rows // head_dim, head_dim))
    names = {
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "intermediate_size": stack.mlp,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.kv_heads,
    }
    agree(folder, ((f"text_config.{n}", config.get(n), v) for n, v in names.items()))
    return stack


def gemma2_fields(text: Mapping[str, Any], shapes, stack: Stack, folder: Path) -> dict[str, Any]:
    """Fields of `GemmaConfig` that a `text_config` of Gemma 2 tells; empty for Gemma 1.

    Raises ValueError if the weights are of the other Gemma than it says.
    """
    two = "language.blocks.0.post_mlp_norm.weight" in shapes
    found = "gemma2" if two else "gemma"
    agree(folder, [("text_config.model_type", text.get("model_type"), found)])
    if not two:
        return {}
    told = {**GEMMA2, **text}
    scalar = told["query_pre_attn_scalar"]
    return {
        "post_norms": True,
        "attention_cap": told["attn_logit_softcapping"],
        "logit_cap": told["final_logit_softcapping"],
        "query_scale": None if scalar == stack.head_dim else scalar**-0.5,
        "window": told["sliding_window"],
    }


def agree(folder: Path, values: Iterable[tuple[str, Any, Any]]) -> None:
    """Raise ValueError for what config.json states (None: nothing) and the weights contradict."""
    wrong = [
        f"{name} is {stated!r}, the weights' is {found!r}"
        for name, stated, found in values
        if stated is not None and stated != found
    ]
    if wrong:
        raise ValueError(
            f"{folder / CONFIG} and the weights beside it disagree: {'; '.join(wrong)}; put the "
            "config.json of these weights there"
        )


def part(config: Mapping[str, Any], name: str, folder: Path) -> Mapping[str, Any]:
    """An object inside config.json, empty where it is left out."""
    values = config.get(name) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{folder / CONFIG}: {name} is {values!r}, expected an object")
    return values
