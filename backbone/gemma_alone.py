"""Gemma without pictures: a causal language model, the other part that stage 0 starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.gemma import Gemma, GemmaConfig, TextEmbedding, at_least_float32
from backbone.sources.layouts import gemma_names
from backbone.weights import save_tensors


@dataclass(frozen=True)
class Texts:
    """tokens: int64 [B, T], from BOS to EOS, padded. valid: bool [B, T]."""

    tokens: Tensor
    valid: Tensor

    def to(self, device: torch.device | str) -> Texts:
        return Texts(self.tokens.to(device), self.valid.to(device))


class GemmaAlone(nn.Module):
    """Token table and stack, tied."""

    def __init__(self, config: GemmaConfig, vocab: int):
        super().__init__()
        self.config, self.vocab = config, vocab
        self.embedding = TextEmbedding(vocab, config.width)
        self.language = Gemma(config)

    def logits(self, texts: Texts) -> Tensor:
        """Of what follows each token, float [B, T, vocab]."""
        block = torch.arange(texts.tokens.shape[1], device=texts.tokens.device)
        x = self.embedding(texts.tokens)
        hidden, _ = self.language(x, block.expand_as(texts.tokens), texts.valid)
        return self.embedding.logits(hidden)

    def forward(self, texts: Texts) -> Tensor:
        """Mean over all tokens of the batch but BOS, a scalar."""
        logits = at_least_float32(self.logits(texts)[:, :-1])
        loss = F.cross_entropy(logits.transpose(1, 2), texts.tokens[:, 1:], reduction="none")
        return loss[texts.valid[:, 1:]].mean()


def save_gemma(model: GemmaAlone, folder: Path) -> None:
    """Write a folder as transformers' `GemmaForCausalLM` does; `backbone.stage0` starts from it."""
    config = model.config
    assert not config.post_norms, "Gemma 1 alone is written"
    values = {
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "vocab_size": model.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    names = gemma_names("language", "model", config.depth)
    names["embedding.weight"] = "model.embed_tokens.weight"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {names[ours]: tensor for ours, tensor in model.state_dict().items()}
    save_tensors(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
