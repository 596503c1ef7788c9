"""Where Hugging Face and big_vision keep a PaliGemma's weights: key tables as data.

    huggingface_names    transformers' names of today; `huggingface_key` translates older ones
    big_vision_places    JAX: layers stacked in front or apart, matrices as [in, out]

Both map our parameter names to theirs. Nothing here imports torch.
Sources: transformers 4.41 to 5.23 `models/paligemma`, `models/gemma2`, `models/siglip`; big_vision
`models/proj/paligemma`, `models/ppp/gemma.py`, `models/vit.py` (commit 0127fb6).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from backbone.sources.places import Place

LINEAR = ("weight", "bias")
HEAD = "lm_head.weight"
HF_TOKENS = "model.language_model.embed_tokens.weight"
HF_VISION = "model.vision_tower.vision_model"
HF_LANGUAGE = "model.language_model"
HF_PROJECTOR = "model.multi_modal_projector.linear"

# Names that other releases give to the same weights, and what 4.52 to 5.22 call them.
HF_ALIASES = (
    (r"^(model\.)?language_model\.lm_head\.", "lm_head."),
    (r"^(model\.)?language_model\.model\.", "model.language_model."),
    (r"^(?=(vision_tower|multi_modal_projector|language_model)\.)", "model."),
    (r"^model\.vision_tower\.(?!vision_model\.)", "model.vision_tower.vision_model."),
)


@dataclass(frozen=True)
class PaliGemmaDepths:
    """How many blocks each stack has, and whether the language model's are Gemma 2's."""

    vision: int
    language: int
    post_norms: bool = False


def huggingface_key(key: str) -> str:
    """The name that transformers gives today to what a file calls `key`."""
    for pattern, now in HF_ALIASES:
        key = re.sub(pattern, now, key)
    return key


def huggingface_names(depths: PaliGemmaDepths) -> dict[str, str]:
    """Our name → Hugging Face's, of every parameter."""
    names = dict(vision_names("vision", HF_VISION, depths.vision))
    names |= {f"projector.{p}": f"{HF_PROJECTOR}.{p}" for p in LINEAR}
    names["embedding.weight"] = HF_TOKENS
    names |= gemma_names("language", HF_LANGUAGE, depths.language, depths.post_norms)
    return names


def huggingface_depths(keys: Iterable[str]) -> PaliGemmaDepths:
    """Read off the keys of a file, after `huggingface_key`."""
    keys = list(keys)
    return PaliGemmaDepths(
        vision=count(keys, rf"{re.escape(HF_VISION)}\.encoder\.layers\.(\d+)\."),
        language=count(keys, rf"{re.escape(HF_LANGUAGE)}\.layers\.(\d+)\."),
        post_norms=any(".pre_feedforward_layernorm." in key for key in keys),
    )


def vision_names(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, str]]:
    """Our name and Hugging Face's of every parameter of a SigLIP that PaliGemma has."""
    for part in LINEAR:
        yield f"{ours}.embedding.{part}", f"{theirs}.embeddings.patch_embedding.{part}"
        yield f"{ours}.norm.{part}", f"{theirs}.post_layernorm.{part}"
    yield f"{ours}.embedding.position", f"{theirs}.embeddings.position_embedding.weight"
    for i in range(depth):
        for module, name in _HF_VISION.items():
            for part in LINEAR:
                yield (
                    f"{ours}.blocks.{i}.{module}.{part}",
                    f"{theirs}.encoder.layers.{i}.{name}.{part}",
                )


def gemma_names(ours: str, theirs: str, depth: int, post_norms: bool = False) -> dict[str, str]:
    """Our name → Hugging Face's, of every parameter of a Gemma but its embedding."""
    names = {f"{ours}.norm.weight": f"{theirs}.norm.weight"}
    norms = HF_POST_NORMS if post_norms else HF_NORMS
    for i in range(depth):
        for module, name in HF_GEMMA.items():
            names[f"{ours}.blocks.{i}.{module}"] = f"{theirs}.layers.{i}.{name}"
        for module, name in norms.items():
            names[f"{ours}.blocks.{i}.{module}.weight"] = f"{theirs}.layers.{i}.{name}.weight"
    return names


def count(keys: Iterable[str], pattern: str) -> int:
    """How many blocks `keys` tell of, their numbers being group 1 of `pattern`."""
    numbers = [int(match[1]) for key in keys if (match := re.match(pattern, key))]
    return max(numbers, default=-1) + 1


_HF_VISION = {
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "out_proj": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
HF_GEMMA = {
    **{f"attention.{x}_proj.weight": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"mlp.{x}_proj.weight": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
}
HF_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
HF_POST_NORMS = {  # Gemma 2's: the second name means another norm than in Gemma 1
    "attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}

# --- JAX ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JaxBlocks:
    """How a file names block `i`: `name` formatted with it. stacked: all in one array, axis 0."""

    name: str
    stacked: bool

    def place(self, i: int, key: str, index: tuple[int, ...] = (), pattern: str | None = None):
        """Where `key` of block `i` stands."""
        first = (i,) if self.stacked else ()
        return Place(f"{self.name.format(i=i)}/{key}", (*first, *index), pattern)


STACKED_VISION = JaxBlocks("Transformer/encoderblock", stacked=True)
APART_VISION = JaxBlocks("Transformer/encoderblock_{i}", stacked=False)
STACKED_GEMMA = JaxBlocks("layers", stacked=True)
APART_GEMMA = (JaxBlocks("layers/{i}", stacked=False), JaxBlocks("layer_{i}", stacked=False))


def jax_vision_places(
    ours: str, theirs: str, depth: int, blocks: JaxBlocks = STACKED_VISION
) -> dict[str, Place]:
    """Our name → big_vision's place, of every parameter of a SigLIP that PaliGemma has.

    theirs: what stands before big_vision's names, with a slash at its end.
    """
    places = {
        f"{ours}.embedding.weight": Place(f"{theirs}embedding/kernel", (), "p q c d -> d c p q"),
        f"{ours}.embedding.bias": Place(f"{theirs}embedding/bias"),
        f"{ours}.embedding.position": Place(f"{theirs}pos_embedding", (0,)),
        f"{ours}.norm.weight": Place(f"{theirs}Transformer/encoder_norm/scale"),
        f"{ours}.norm.bias": Place(f"{theirs}Transformer/encoder_norm/bias"),
    }
    blocks = JaxBlocks(f"{theirs}{blocks.name}", blocks.stacked)
    for i in range(depth):
        for name, key, pattern in _JAX_VISION:
            places[f"{ours}.blocks.{i}.{name}"] = blocks.place(i, key, (), pattern)
    return places


def jax_gemma_places(
    ours: str,
    theirs: str,
    depth: int,
    *,
    suffix: str = "",
    norms: bool = True,
    post_norms: bool = False,
    blocks: JaxBlocks = STACKED_GEMMA,
) -> dict[str, Place]:
    """Our name → big_vision's place, of every parameter of a Gemma but its embedding.

    theirs: as in `jax_vision_places`. suffix: after the name of every module. norms: leave them
    out where False, for a stack whose norms are others.
    """
    places = {}
    prefix = theirs
    blocks = JaxBlocks(f"{prefix}{blocks.name}", blocks.stacked)
    for i in range(depth):
        for name, key, index, pattern in JAX_GEMMA:
            place = blocks.place(i, key.format(s=suffix), index, pattern)
            places[f"{ours}.blocks.{i}.{name}"] = place
        for name, key in (_JAX_POST_NORMS if post_norms else JAX_NORMS).items() if norms else ():
            places[f"{ours}.blocks.{i}.{name}.weight"] = blocks.place(i, f"{key}{suffix}/scale")
    if norms:
        places[f"{ours}.norm.weight"] = Place(f"{prefix}final_norm{suffix}/scale")
    return places


_HEADS = "MultiHeadDotProductAttention_0/"
_JAX_VISION = (
    ("attention_norm.weight", "LayerNorm_0/scale", None),
    ("attention_norm.bias", "LayerNorm_0/bias", None),
    ("mlp_norm.weight", "LayerNorm_1/scale", None),
    ("mlp_norm.bias", "LayerNorm_1/bias", None),
    ("q_proj.weight", f"{_HEADS}query/kernel", "d n h -> (n h) d"),
    ("q_proj.bias", f"{_HEADS}query/bias", "n h -> (n h)"),
    ("k_proj.weight", f"{_HEADS}key/kernel", "d n h -> (n h) d"),
    ("k_proj.bias", f"{_HEADS}key/bias", "n h -> (n h)"),
    ("v_proj.weight", f"{_HEADS}value/kernel", "d n h -> (n h) d"),
    ("v_proj.bias", f"{_HEADS}value/bias", "n h -> (n h)"),
    ("out_proj.weight", f"{_HEADS}out/kernel", "n h d -> d (n h)"),
    ("out_proj.bias", f"{_HEADS}out/bias", None),
    ("fc1.weight", "MlpBlock_0/Dense_0/kernel", "i o -> o i"),
    ("fc1.bias", "MlpBlock_0/Dense_0/bias", None),
    ("fc2.weight", "MlpBlock_0/Dense_1/kernel", "i o -> o i"),
    ("fc2.bias", "MlpBlock_0/Dense_1/bias", None),
)
# ours, theirs with {s} for the stack's suffix, index after the layer's, pattern
JAX_GEMMA = (
    ("attention.q_proj.weight", "attn/q_einsum{s}/w", (), "n d h -> (n h) d"),
    ("attention.k_proj.weight", "attn/kv_einsum{s}/w", (0,), "k d h -> (k h) d"),
    ("attention.v_proj.weight", "attn/kv_einsum{s}/w", (1,), "k d h -> (k h) d"),
    ("attention.o_proj.weight", "attn/attn_vec_einsum{s}/w", (), "n h d -> d (n h)"),
    ("mlp.gate_proj.weight", "mlp{s}/gating_einsum", (0,), "i o -> o i"),
    ("mlp.up_proj.weight", "mlp{s}/gating_einsum", (1,), "i o -> o i"),
    ("mlp.down_proj.weight", "mlp{s}/linear", (), "i o -> o i"),
)
JAX_NORMS = {"attention_norm": "pre_attention_norm", "mlp_norm": "pre_ffw_norm"}
_JAX_POST_NORMS = {
    **JAX_NORMS,
    "post_attention_norm": "post_attention_norm",
    "post_mlp_norm": "post_ffw_norm",
}
