"""Hugging Face's PaliGemma at toy size, and its weights under our names."""

import re
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PaliGemmaConfig as HFConfig
from transformers import PaliGemmaForConditionalGeneration

from backbone.gemma import GemmaConfig
from backbone.paligemma import PaliGemma, PaliGemmaConfig, TextBatch
from backbone.siglip import SigLIPConfig
from backbone.weights import load_tensors

IMAGE_TOKEN = 157  # where Hugging Face's token rows leave room for a patch; ours have no such token
PATCHES = 16

assert_close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)

TOY = PaliGemmaConfig(
    vision=SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=14, resolution=56),
    language=GemmaConfig(width=64, depth=3, mlp=96, heads=4, kv_heads=1, head_dim=16),
    vocab=160,
)

# PaliGemma 2's; Hugging Face keeps a cap on logits in its config and doesn't apply it.
TOY2 = replace(TOY, language=replace(TOY.language, kv_heads=2, post_norms=True, attention_cap=5.0))

# Hugging Face's spellings, old and new, on the left; applied from top to bottom.
RENAMES = (
    (r"^model\.", ""),
    (r"^language_model\.(model\.)?", "language."),
    (r"^vision_tower\.(vision_model\.)?", "vision."),
    (r"^multi_modal_projector\.linear", "projector"),
    (r"^language\.embed_tokens", "embedding"),
    (r"vision\.embeddings\.patch_embedding", "vision.embedding"),
    (r"vision\.embeddings\.position_embedding\.weight", "vision.embedding.position"),
    (r"vision\.encoder\.layers\.(\d+)\.(self_attn\.|mlp\.)?", r"vision.blocks.\1."),
    (r"layer_norm1", "attention_norm"),
    (r"layer_norm2", "mlp_norm"),
    (r"post_layernorm", "norm"),
    (r"language\.layers", "language.blocks"),
    (r"input_layernorm", "attention_norm"),
    (r"self_attn", "attention"),
)
# The norm after attention stands before the MLP in Gemma, and closes attention's branch in Gemma 2.
NORMS = ((r"post_attention_layernorm", "mlp_norm"),)
NORMS2 = (
    (r"post_attention_layernorm", "post_attention_norm"),
    (r"pre_feedforward_layernorm", "mlp_norm"),
    (r"post_feedforward_layernorm", "post_mlp_norm"),
)


def our_name(key: str, config: PaliGemmaConfig = TOY) -> str:
    for pattern, ours in (*RENAMES, *(NORMS2 if config.language.post_norms else NORMS)):
        key = re.sub(pattern, ours, key)
    return key


def our_tensors(tensors: dict[str, Tensor], config: PaliGemmaConfig = TOY) -> dict[str, Tensor]:
    """Hugging Face's tensors under our names; its tied copy of the token table is left out."""
    return {our_name(key, config): value for key, value in tensors.items() if "lm_head" not in key}


def load(tensors: dict[str, Tensor], config: PaliGemmaConfig = TOY) -> PaliGemma:
    """Our toy model with Hugging Face's weights."""
    model = PaliGemma(config)
    load_tensors(model, our_tensors(tensors, config), source="Hugging Face's toy model")
    return model.eval()


def never_say_image(model: PaliGemma) -> None:
    """Forbid the token that Hugging Face's `generate` forbids; our models have no such token."""
    logits = model.embedding.logits
    forbidden = torch.arange(TOY.vocab) == IMAGE_TOKEN
    model.embedding.logits = lambda hidden: logits(hidden).masked_fill(forbidden, -torch.inf)


def random_hf(seed: int) -> PaliGemmaForConditionalGeneration:
    """Hugging Face's toy model with every weight random and large enough to matter."""
    vision, language = TOY.vision, TOY.language
    config = HFConfig.from_dict(
        {
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": vision.width,
                "intermediate_size": vision.mlp,
                "num_hidden_layers": vision.depth,
                "num_attention_heads": vision.heads,
                "patch_size": vision.patch,
                "image_size": vision.resolution,
                "vision_use_head": False,
                "projection_dim": language.width,
            },
            "text_config": {
                "model_type": "gemma",
                "vocab_size": TOY.vocab,
                "hidden_size": language.width,
                "intermediate_size": language.mlp,
                "num_hidden_layers": language.depth,
                "num_attention_heads": language.heads,
                "num_key_value_heads": language.kv_heads,
                "head_dim": language.head_dim,
            },
            "projection_dim": language.width,
            "image_token_index": IMAGE_TOKEN,
        }
    )
    model = PaliGemmaForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.ndim == 1 else 2 / parameter[0].numel() ** 0.5
            if "embed_tokens" in name:  # else each token is most likely followed by itself
                scale /= 5
            parameter.copy_(scale * noise)
    return model


@dataclass(frozen=True)
class Layout:
    """One batch, laid out for Hugging Face (`hf`) and for us (`ours`), and where both have text.

    `hf` holds input_ids, attention_mask, token_type_ids and pixel_values. `text_hf` and `text_ours`
    are masks of the real text tokens, in the same order.
    """

    hf: dict[str, Tensor]
    ours: TextBatch
    text_hf: Tensor
    text_ours: Tensor


def layout(
    texts: list[tuple[list[int], list[int]]], images: Tensor, *, left: bool = False
) -> Layout:
    """Lay out (prompt, answer) id lists with images uint8 [B, N, 3, R, R], padded left or right."""
    patches = [IMAGE_TOKEN] * (PATCHES * images.shape[1])
    rows = [patches + prompt + answer for prompt, answer in texts]
    suffix = [[0] * (len(patches) + len(p)) + [1] * len(a) for p, a in texts]
    ids, types = _pad(rows, left), _pad(suffix, left)
    mask = _pad([[1] * len(row) for row in rows], left)
    scaled = images.float() / 127.5 - 1
    tokens = _pad([p + a for p, a in texts], left)
    valid = _pad([[1] * len(p + a) for p, a in texts], left).bool()
    ours = TextBatch(
        images=scaled,
        image_valid=torch.ones(images.shape[:2], dtype=torch.bool),
        tokens=tokens,
        token_valid=valid,
        suffix=_pad([[0] * len(p) + [1] * len(a) for p, a in texts], left).bool(),
    )
    hf = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "pixel_values": scaled.flatten(0, 1),
    }
    return Layout(hf, ours, mask.bool() & (ids != IMAGE_TOKEN), valid)


def _pad(rows: list[list[int]], left: bool) -> Tensor:
    length = max(map(len, rows))
    pads = [[0] * (length - len(row)) for row in rows]
    padded = [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
    return torch.tensor(padded)
