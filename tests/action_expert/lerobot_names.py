"""LeRobot's π0 and π0.5 parameters under our names."""

import re

from torch import Tensor

# The tied copy of the token table and the expert's unused one never reach an action.
UNUSED = "lm_head"

RENAMES = (
    (r"^model\.", ""),
    (r"^paligemma_with_expert\.paligemma\.model\.", "backbone."),
    (r"^paligemma_with_expert\.gemma_expert\.model\.", "expert.gemma."),
    (r"^(action|state|time)_", r"expert.\1_"),
    (r"\.dense\.", ".modulation."),
    (r"language_model\.embed_tokens", "embedding"),
    (r"language_model\.", "language."),
    (r"vision_tower\.vision_model\.", "vision."),
    (r"multi_modal_projector\.linear", "projector"),
    (r"embeddings\.patch_embedding", "embedding"),
    (r"embeddings\.position_embedding\.weight", "embedding.position"),
    (r"encoder\.layers\.(\d+)\.(self_attn\.|mlp\.)?", r"blocks.\1."),
    (r"layer_norm1|input_layernorm", "attention_norm"),
    (r"layer_norm2|post_attention_layernorm", "mlp_norm"),
    (r"post_layernorm", "norm"),
    (r"\.layers\.", ".blocks."),
    (r"self_attn", "attention"),
)


def our_name(key: str) -> str:
    for pattern, ours in RENAMES:
        key = re.sub(pattern, ours, key)
    return key


def our_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {our_name(key): x for key, x in tensors.items() if UNUSED not in key}
