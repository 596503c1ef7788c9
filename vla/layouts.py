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

from backbone.sources.layouts import (
    HF_GEMMA,
    HF_NORMS,
    JAX_NORMS,
    LINEAR,
    PaliGemmaDepths,
    count,
    huggingface_key,
    huggingface_names,
    jax_gemma_places,
    jax_vision_places,
)
from backbone.sources.places import Place

VLM = "paligemma_with_expert.paligemma."
EXPERT = "paligemma_with_expert.gemma_expert."
VLM_HEAD, EXPERT_HEAD = f"{VLM}lm_head.weight", f"{EXPERT}lm_head.weight"
TOKENS = f"{VLM}model.language_model.embed_tokens.weight"
LEROBOT_PREFIX = "model."

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


def port_names(depths: Depths) -> dict[str, str]:
    """Our name → openpi PyTorch's, of every parameter."""
    paligemma = huggingface_names(PaliGemmaDepths(depths.vision, depths.language))
    names = {f"backbone.{ours}": f"{VLM}{theirs}" for ours, theirs in paligemma.items()}
    names |= dict(_port_gemma("expert.gemma", f"{EXPERT}model", depths.expert, depths.adaptive))
    for module in (*PROJECTIONS[depths.adaptive], "action_out_proj"):
        names |= {f"expert.{module}.{p}": f"{module}.{p}" for p in LINEAR}
    return names


def port_key(key: str) -> str:
    """The name that openpi's PyTorch port gives today to what a file calls `key`."""
    key = _LEROBOT.sub("", key)
    if key.startswith(VLM):
        key = VLM + huggingface_key(key.removeprefix(VLM))
    return key


def port_depths(keys: Iterable[str]) -> Depths:
    """Read off the keys of a file, after `port_key`."""
    keys = list(keys)
    return Depths(
        vision=count(keys, rf"{re.escape(_VISION)}\.encoder\.layers\.(\d+)\."),
        language=count(keys, rf"{re.escape(_LANGUAGE)}\.layers\.(\d+)\."),
        expert=count(keys, rf"{re.escape(EXPERT)}model\.layers\.(\d+)\."),
        adaptive=any(k.startswith(EXPERT) and ".dense." in k for k in keys),
    )


def jax_places(depths: Depths) -> dict[str, Place]:
    """Our name → where openpi's JAX parameters hold it, of every parameter."""
    places = paligemma_places(depths.vision, depths.language)
    places |= _jax_gemma("expert.gemma", "_1", depths.expert, depths.adaptive)
    for module in (*PROJECTIONS[depths.adaptive], "action_out_proj"):
        places[f"expert.{module}.weight"] = Place(f"{module}/kernel", (), "i o -> o i")
        places[f"expert.{module}.bias"] = Place(f"{module}/bias")
    return places


def paligemma_places(vision: int, language: int) -> dict[str, Place]:
    """As `jax_places`, of the PaliGemma alone."""
    places = jax_vision_places("backbone.vision", _IMG, vision)
    places["backbone.projector.weight"] = Place(f"{_IMG}head/kernel", (), "i o -> o i")
    places["backbone.projector.bias"] = Place(f"{_IMG}head/bias")
    places["backbone.embedding.weight"] = Place(f"{_LLM}embedder/input_embedding")
    return places | jax_gemma_places("backbone.language", _LLM, language)


_LEROBOT = re.compile(r"^model\.(?=paligemma_with_expert\.|action_|state_proj|time_mlp)")
_VISION = f"{VLM}model.vision_tower.vision_model"
_LANGUAGE = f"{VLM}model.language_model"
_IMG, _LLM = "PaliGemma/img/", "PaliGemma/llm/"


def _port_gemma(ours: str, theirs: str, depth: int, adaptive: bool) -> Iterable[tuple[str, str]]:
    norm = {"modulation.weight": "dense.weight", "modulation.bias": "dense.bias"}
    parts = norm if adaptive else {"weight": "weight"}
    for i in range(depth):
        for module, their_module in HF_GEMMA.items():
            yield f"{ours}.blocks.{i}.{module}", f"{theirs}.layers.{i}.{their_module}"
        for module, their_module in HF_NORMS.items():
            for part, their_part in parts.items():
                yield (
                    f"{ours}.blocks.{i}.{module}.{part}",
                    f"{theirs}.layers.{i}.{their_module}.{their_part}",
                )
    for part, their_part in parts.items():
        yield f"{ours}.norm.{part}", f"{theirs}.norm.{their_part}"


def _jax_gemma(ours: str, suffix: str, depth: int, adaptive: bool) -> dict[str, Place]:
    places = jax_gemma_places(ours, _LLM, depth, suffix=suffix, norms=False)
    for i in range(depth):
        for module, theirs in JAX_NORMS.items():
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
