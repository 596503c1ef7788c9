"""Weights as big_vision writes them: an .npz file of JAX arrays.

Keys are paths such as `img/embedding/kernel`, in published files behind `params/`. Blocks are
stacked in one array or stand apart. bfloat16 is stored as two bytes without a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backbone.sources.headers import Tensor, npz_header
from backbone.sources.layouts import (
    APART_GEMMA,
    APART_VISION,
    STACKED_GEMMA,
    STACKED_VISION,
    JaxBlocks,
    jax_gemma_places,
    jax_vision_places,
)
from backbone.sources.paligemma_files import VOCAB, PaliGemmaFiles
from backbone.sources.places import Place, Weights, check_floats, some
from backbone.sources.sizes import STACKS, Heads, stack_of, vision_of

PARAMS = "params/"
GEMMA2_27B = STACKS["gemma2_27b"]


@dataclass(frozen=True)
class Params:
    """The arrays of a file by their paths without `params/`; `keys` has the file's own names."""

    path: Path
    tensors: Mapping[str, Tensor]
    keys: Mapping[str, str]
    unused: Mapping[str, str]

    def has(self, path: str) -> bool:
        return path in self.keys

    def shape(self, path: str) -> tuple[int, ...]:
        """Raises ValueError, with what is there, if it is not."""
        if path not in self.keys:
            raise ValueError(
                f"{self.path} does not hold the weights that are expected; it lacks {path}; it "
                f"holds {some(self.keys)}"
            )
        return self.tensors[self.keys[path]].shape

    def weights(self, places: Mapping[str, Place], unused: Mapping[str, str]) -> Weights:
        """These places (by path) in the file. Raises ValueError if one is missing or no float."""
        missing = sorted({p.key for p in places.values()} - self.keys.keys())
        if missing:
            known = {p.key for p in places.values()} | unused.keys()
            raise ValueError(
                f"{self.path} is not whole; it lacks {some(missing)}; "
                f"unknown in it: {some(k for k in self.keys if k not in known)}"
            )
        found = {name: replace(p, key=self.keys[p.key]) for name, p in places.items()}
        check_floats(self.path, self.tensors, found)
        left_out = {self.keys[path]: why for path, why in unused.items()}
        return Weights(self.path, self.tensors, found, {**self.unused, **left_out})


def read_params(path: Path) -> Params:
    """Open the file's headers. Raises as `npz_header` does.

    Where some keys start with `params/`, the others are of the optimiser and are not used.
    """
    tensors = npz_header(path)
    inside = [key for key in tensors if key.startswith(PARAMS)]
    keys = {key.removeprefix(PARAMS): key for key in inside or tensors}
    unused = {key: "no parameter" for key in tensors if inside and not key.startswith(PARAMS)}
    return Params(path, tensors, keys, unused)


def big_vision_files(path: Path) -> PaliGemmaFiles:
    """Read all of a PaliGemma or PaliGemma 2 but the weights themselves.

    Raises FileNotFoundError, or ValueError if the file is not whole or of another model.
    """
    params = read_params(path)
    places = vision_places(params, "img/")
    places["projector.weight"] = Place("img/head/kernel", (), "i o -> o i")
    places["projector.bias"] = Place("img/head/bias")
    places |= gemma_places(params, "llm/", VOCAB)
    weights = params.weights(places, {})
    heads = Heads(vision_heads(params, "img/"), gemma_heads(params, "llm/"))
    shapes = weights.shapes
    stack = stack_of(shapes, "language", heads.language)
    return PaliGemmaFiles(
        origin="big_vision",
        path=path,
        weights=weights,
        vision=vision_of(shapes, "vision", heads.vision),
        language=stack,
        vocab=shapes["embedding.weight"][0],
        gemma2=_gemma2_fields(shapes, stack == GEMMA2_27B),
    )


def _gemma2_fields(shapes: Mapping[str, Any], largest: bool) -> dict[str, Any]:
    """What big_vision's configs say of Gemma 2; its files do not."""
    if "language.blocks.0.post_mlp_norm.weight" not in shapes:
        return {}
    scale = (4608 / 32) ** -0.5 if largest else None
    caps = {"attention_cap": 50.0, "logit_cap": 30.0}
    return {"post_norms": True, **caps, "query_scale": scale, "window": None}


def vision_places(params: Params, prefix: str) -> dict[str, Place]:
    """Of a SigLIP's parameters, "vision.…", whose paths start with `prefix`."""
    norm = "LayerNorm_0/scale"
    blocks, depth = _blocks(params, prefix, (STACKED_VISION, APART_VISION), norm)
    return jax_vision_places("vision", prefix, depth, blocks)


def vision_heads(params: Params, prefix: str) -> int:
    """Heads of its blocks."""
    norm = "LayerNorm_0/scale"
    blocks, _ = _blocks(params, prefix, (STACKED_VISION, APART_VISION), norm)
    query = "MultiHeadDotProductAttention_0/query/kernel"
    return params.shape(prefix + blocks.place(0, query).key)[-2]


def gemma_places(params: Params, prefix: str, rows: int) -> dict[str, Place]:
    """Of a Gemma's parameters, "language.…" and "embedding.weight", which has at most `rows`."""
    blocks, depth = _blocks(params, prefix, (STACKED_GEMMA, *APART_GEMMA), _SCALE)
    post_norms = params.has(prefix + blocks.place(0, "post_ffw_norm/scale").key)
    places = jax_gemma_places("language", prefix, depth, post_norms=post_norms, blocks=blocks)
    tokens = f"{prefix}embedder/input_embedding"
    width = params.shape(tokens)[1]
    places["embedding.weight"] = Place(tokens, rows=rows)
    return {name: _as_stored(params, place, width) for name, place in places.items()}


def gemma_heads(params: Params, prefix: str) -> tuple[int, int]:
    """Key/value heads and their size."""
    blocks, _ = _blocks(params, prefix, (STACKED_GEMMA, *APART_GEMMA), _SCALE)
    shape = params.shape(prefix + blocks.place(0, "attn/kv_einsum/w").key)  # [(L), 2, K, D, H]
    return shape[-3], shape[-1]


_SCALE = "pre_attention_norm/scale"


def _blocks(params: Params, prefix: str, layouts, probe: str) -> tuple[JaxBlocks, int]:
    """How the file lays its blocks out, and how many there are."""
    for blocks in layouts:
        path = prefix + blocks.place(0, probe).key
        if not params.has(path):
            continue
        if blocks.stacked:
            return blocks, params.shape(path)[0]
        depth = 1
        while params.has(prefix + blocks.place(depth, probe).key):
            depth += 1
        return blocks, depth
    raise ValueError(
        f"{params.path} does not hold the weights that are expected; it lacks "
        f"{prefix}{layouts[0].place(0, probe).key}; it holds {some(params.keys)}"
    )


def _as_stored(params: Params, place: Place, width: int) -> Place:
    """Gemma's own releases keep the MLP's matrices one level deeper, some of them as [out, in]."""
    if "/mlp/" not in place.key:
        return place
    key = place.key if params.has(place.key) else f"{place.key}/w"
    if key.removesuffix("/w").endswith("gating_einsum") and params.has(key):
        rows, columns = params.shape(key)[-2:]
        if rows != width and columns == width:
            return replace(place, key=key, pattern=None)
    return replace(place, key=key) if params.has(key) else place
