"""transformers' PaliGemma with the weights of ours, for comparison. Needs the dev dependencies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backbone.paligemma import PaliGemma, TextBatch
from backbone.sources.layouts import PaliGemmaDepths, huggingface_names


def same_model(model: PaliGemma) -> Any:
    """A PaliGemmaForConditionalGeneration of the same sizes whose parameters are those of `model`;
    on a CPU they share memory. The last id of the vocabulary becomes the picture's placeholder.

    Raises ImportError without transformers, ValueError for a Gemma 2.
    """
    try:
        from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(
            "comparing needs transformers, one of the dev dependencies: pip install 'vla[dev]'"
        ) from error
    config = model.config
    vision, language = config.vision, config.language
    if language.post_norms:
        raise ValueError("expected a PaliGemma with Gemma 1, got one with Gemma 2")
    sizes = {
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
            "vocab_size": config.vocab,
            "hidden_size": language.width,
            "intermediate_size": language.mlp,
            "num_hidden_layers": language.depth,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "head_dim": language.head_dim,
        },
        "projection_dim": language.width,
        "image_token_index": config.vocab - 1,
    }
    names = huggingface_names(PaliGemmaDepths(vision.depth, language.depth))
    weights = {names[name]: parameter.data for name, parameter in model.named_parameters()}
    logging.disable_progress_bar()
    theirs: Any = PaliGemmaForConditionalGeneration.from_pretrained(
        None,
        config=PaliGemmaConfig.from_dict(sizes),
        state_dict=weights,
        dtype=model.embedding.weight.dtype,
    )
    theirs.generation_config.eos_token_id = None  # answers are as long as they are asked to be
    return theirs.eval().to(model.embedding.weight.device)


def same_inputs(prompt: TextBatch, model: PaliGemma) -> dict[str, Tensor]:
    """Prompts without padding, one picture each, as transformers takes them."""
    assert bool(prompt.token_valid.all()), "padded prompts"
    patches = torch.full_like(prompt.tokens[:, :1], model.config.vocab - 1)
    ids = torch.cat([patches.expand(-1, model.config.vision.tokens), prompt.tokens], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": prompt.images[:, 0].to(model.embedding.weight.dtype),
    }
