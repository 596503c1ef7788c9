"""Where openpi and LeRobot keep π0's and π0.5's weights: key tables as data.

    port_names    openpi's PyTorch port, and LeRobot with `model.` in front of every name
    jax_places    openpi's JAX checkpoints: layers stacked in front, matrices as [in, out]

Both map our parameter names to theirs. Nothing here imports torch.
Source: openpi `models_pytorch/pi0_pytorch.py`, `examples/convert_jax_model_to_pytorch.py` (commit
15a9616) and LeRobot 0.6.1 `policies/pi0/modeling_pi0.py`; checked against files that they wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

LINEAR = ("weight", "bias")
VLM = "paligemma_with_expert.paligemma."
EXPERT = "paligemma_with_expert.gemma_expert."
VLM_HEAD, EXPERT_HEAD = f"{VLM}lm_head.weight", f"{EXPERT}lm_head.weight"
TOKENS = f"{VLM}model.language_model.embed_tokens.weight"
LEROBOT_PREFIX = "model."

# Names that older releases gave to the same weights, and what they are called now.
ALIASES = (
    (r"^model\.(?=paligemma_with_expert\.|action_|state_proj|time_mlp)", ""),
    (r"\.paligemma\.language_model\.lm_head\.", ".paligemma.lm_head."),
    (r"\.paligemma\.(model\.)?language_model\.model\.", ".paligemma.model.language_model."),
    (
        r"\.paligemma\.(?=vision_tower|multi_modal_projector|language_model)",
        ".paligemma.model.",
    ),
    (r"\.vision_tower\.(?!vision_model\.)", ".vision_tower.vision_model."),
)

PROJECTIONS = {
    False: ("state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out"),
    True: ("action_in_proj", "time_mlp_in", "time_mlp_out"),
}


@dataclass(frozen=True)
class Depths:
    """How many blocks each stack has, and whether the expert's norms are π0.5's."""

    vision: int
    language: int
    expert: int
    adaptive: bool


@dataclass(frozen=True)
class Place:
    """Where one of our tensors stands: in array `key`, at `index` of its leading axes, its
    remaining axes rearranged by the einops `pattern` (theirs → ours; None: as they are)."""

    key: str
    index: tuple[int, ...] = ()
    pattern: str | None = None


def port_names(depths: Depths) -> dict[str, str]:
    """Our name → openpi PyTorch's, of every parameter."""
    names = dict(_port_vision(depths.vision))
    names |= {f"backbone.projector.{p}": f"{_PROJECTOR}.{p}" for p in LINEAR}
    names["backbone.embedding.weight"] = TOKENS
    names |= dict(_port_gemma("backbone.language", _LANGUAGE, depths.language, False))
    names |= dict(_port_gemma("expert.gemma", f"{EXPERT}model", depths.expert, depths.adaptive))
    for module in (*PROJECTIONS[depths.adaptive], "action_out_proj"):
        names |= {f"expert.{module}.{p}": f"{module}.{p}" for p in LINEAR}
    return names


def port_key(key: str) -> str:
    """The name that openpi's PyTorch port gives today to what a file calls `key`."""
    for pattern, now in ALIASES:
        key = re.sub(pattern, now, key)
    return key


def port_depths(keys: Iterable[str]) -> Depths:
    """Read off the keys of a file, after `port_key`."""
    keys = list(keys)
    return Depths(
        vision=_count(keys, rf"{re.escape(_VISION)}\.encoder\.layers\.(\d+)\."),
        language=_count(keys, rf"{re.escape(_LANGUAGE)}\.layers\.(\d+)\."),
        expert=_count(keys, rf"{re.escape(EXPERT)}model\.layers\.(\d+)\."),
        adaptive=any(k.startswith(EXPERT) and ".dense." in k for k in keys),
    )


def jax_places(depths: Depths) -> dict[str, Place]:
    """Our name → where openpi's JAX parameters hold it, of every parameter."""
    places = {
        "backbone.vision.embedding.weight": Place(
            f"{_IMG}embedding/kernel", (), "p q c d -> d c p q"
        ),
        "backbone.vision.embedding.bias": Place(f"{_IMG}embedding/bias"),
        "backbone.vision.embedding.position": Place(f"{_IMG}pos_embedding", (0,)),
        "backbone.vision.norm.weight": Place(f"{_IMG}Transformer/encoder_norm/scale"),
        "backbone.vision.norm.bias": Place(f"{_IMG}Transformer/encoder_norm/bias"),
        "backbone.projector.weight": Place(f"{_IMG}head/kernel", (), "i o -> o i"),
        "backbone.projector.bias": Place(f"{_IMG}head/bias"),
        "backbone.embedding.weight": Place(f"{_LLM}embedder/input_embedding"),
    }
    for i in range(depths.vision):
        block = f"backbone.vision.blocks.{i}"
        for ours, theirs, pattern in _JAX_VISION:
            places[f"{block}.{ours}"] = Place(f"{_IMG}{_ENCODER}{theirs}", (i,), pattern)
    places |= _jax_gemma("backbone.language", "", depths.language, False)
    places |= _jax_gemma("expert.gemma", "_1", depths.expert, depths.adaptive)
    for module in (*PROJECTIONS[depths.adaptive], "action_out_proj"):
        places[f"expert.{module}.weight"] = Place(f"{module}/kernel", (), "i o -> o i")
        places[f"expert.{module}.bias"] = Place(f"{module}/bias")
    return places


_VISION = f"{VLM}model.vision_tower.vision_model"
_PROJECTOR = f"{VLM}model.multi_modal_projector.linear"
_LANGUAGE = f"{VLM}model.language_model"

_PORT_VISION = {
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "out_proj": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_PORT_GEMMA = {
    **{f"attention.{x}_proj.weight": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"mlp.{x}_proj.weight": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
}
_PORT_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def _port_vision(depth: int) -> Iterable[tuple[str, str]]:
    ours = "backbone.vision"
    for part in LINEAR:
        yield f"{ours}.embedding.{part}", f"{_VISION}.embeddings.patch_embedding.{part}"
        yield f"{ours}.norm.{part}", f"{_VISION}.post_layernorm.{part}"
    yield f"{ours}.embedding.position", f"{_VISION}.embeddings.position_embedding.weight"
    for i in range(depth):
        for module, theirs in _PORT_VISION.items():
            for part in LINEAR:
                yield (
                    f"{ours}.blocks.{i}.{module}.{part}",
                    f"{_VISION}.encoder.layers.{i}.{theirs}.{part}",
                )


def _port_gemma(ours: str, theirs: str, depth: int, adaptive: bool) -> Iterable[tuple[str, str]]:
    norm = {"modulation.weight": "dense.weight", "modulation.bias": "dense.bias"}
    parts = norm if adaptive else {"weight": "weight"}
    for i in range(depth):
        for module, their_module in _PORT_GEMMA.items():
            yield f"{ours}.blocks.{i}.{module}", f"{theirs}.layers.{i}.{their_module}"
        for module, their_module in _PORT_NORMS.items():
            for part, their_part in parts.items():
                yield (
                    f"{ours}.blocks.{i}.{module}.{part}",
                    f"{theirs}.layers.{i}.{their_module}.{their_part}",
                )
    for part, their_part in parts.items():
        yield f"{ours}.norm.{part}", f"{theirs}.norm.{their_part}"


_IMG, _LLM, _ENCODER = "PaliGemma/img/", "PaliGemma/llm/", "Transformer/encoderblock/"
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
_JAX_GEMMA = (
    ("attention.q_proj.weight", "attn/q_einsum{s}/w", (), "n d h -> (n h) d"),
    ("attention.k_proj.weight", "attn/kv_einsum{s}/w", (0,), "k d h -> (k h) d"),
    ("attention.v_proj.weight", "attn/kv_einsum{s}/w", (1,), "k d h -> (k h) d"),
    ("attention.o_proj.weight", "attn/attn_vec_einsum{s}/w", (), "n h d -> d (n h)"),
    ("mlp.gate_proj.weight", "mlp{s}/gating_einsum", (0,), "i o -> o i"),
    ("mlp.up_proj.weight", "mlp{s}/gating_einsum", (1,), "i o -> o i"),
    ("mlp.down_proj.weight", "mlp{s}/linear", (), "i o -> o i"),
)


def _jax_gemma(ours: str, suffix: str, depth: int, adaptive: bool) -> dict[str, Place]:
    places = {}
    for i in range(depth):
        for module, theirs, index, pattern in _JAX_GEMMA:
            key = f"{_LLM}layers/{theirs.format(s=suffix)}"
            places[f"{ours}.blocks.{i}.{module}"] = Place(key, (i, *index), pattern)
        for module, theirs in (
            ("attention_norm", "pre_attention_norm"),
            ("mlp_norm", "pre_ffw_norm"),
        ):
            norm = f"{_LLM}layers/{theirs}{suffix}"
            places |= _jax_norm(f"{ours}.blocks.{i}.{module}", norm, (i,), adaptive)
    return places | _jax_norm(f"{ours}.norm", f"{_LLM}final_norm{suffix}", (), adaptive)


def _jax_norm(ours: str, theirs: str, index: tuple[int, ...], adaptive: bool) -> dict[str, Place]:
    if not adaptive:
        return {f"{ours}.weight": Place(f"{theirs}/scale", index)}
    return {
        f"{ours}.modulation.weight": Place(f"{theirs}/Dense_0/kernel", index, "i o -> o i"),
        f"{ours}.modulation.bias": Place(f"{theirs}/Dense_0/bias", index),
    }


def _count(keys: Iterable[str], pattern: str) -> int:
    numbers = [int(match[1]) for key in keys if (match := re.match(pattern, key))]
    return max(numbers, default=-1) + 1
