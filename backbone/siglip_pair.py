"""SigLIP whole: both towers and the sigmoid loss that trains them (arXiv 2303.15343).

What PaliGemma's stage 0 takes of it is the image tower alone, `vision`. The rest is here so that
an image encoder can be made as well as loaded.
Letters: B pairs, T text tokens, P patches, D width of the shared space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.siglip import Block, Linear, SigLIP, SigLIPConfig
from backbone.sources.layouts import LINEAR, vision_names
from backbone.weights import save_tensors

FIRST_SCALE, FIRST_BIAS = math.log(10), -10.0  # arXiv 2303.15343, section 3.2


@dataclass(frozen=True)
class SigLIPPairConfig:
    """text: sizes of the text tower, whose width is the image tower's; text_length: its tokens."""

    vision: SigLIPConfig
    vocab: int
    text_depth: int = 2
    text_length: int = 64


@dataclass(frozen=True)
class PairBatch:
    """images: uint8 or float in [-1, 1], [B, 3, R, R]. tokens: int64 [B, T], padded with EOS,
    which the text tower sees as any other token."""

    images: Tensor
    tokens: Tensor

    def to(self, device: torch.device | str) -> PairBatch:
        return PairBatch(self.images.to(device), self.tokens.to(device))


class ProbeAttention(nn.MultiheadAttention):
    """Torch's own, with SigLIP's start."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, batch_first=True)
        self.out_proj = Linear(width, width)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.in_proj_bias)
        nn.init.xavier_uniform_(self.in_proj_weight)


class Table(nn.Embedding):
    """Rows of about unit length."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.embedding_dim))


class PoolingHead(nn.Module):
    """One learned query attends to all patches; an MLP with a residual follows."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.attention = ProbeAttention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.fc1 = Linear(config.width, config.mlp)
        self.fc2 = Linear(config.mlp, config.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.probe)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, P, D]. Returns float [B, D]."""
        probe = self.probe.expand(x.shape[0], -1, -1)
        x = self.attention(probe, x, x, need_weights=False)[0]
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x)), approximate="tanh"))
        return x[:, 0]


class TextTower(nn.Module):
    """A transformer without a mask; the last token's state, through a linear layer, is the text."""

    def __init__(self, config: SigLIPPairConfig):
        super().__init__()
        width = config.vision.width
        self.token = Table(config.vocab, width)
        self.position = Table(config.text_length, width)
        self.blocks = nn.ModuleList(Block(config.vision) for _ in range(config.text_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, T]. Returns float [B, D]."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, -1])


class SigLIPPair(nn.Module):
    """Pictures and captions in; a loss, or both as points of one space, out.

    together: in training over several processes, gives of the texts of each, float [B, D], those of
    all, [n · B, D], and where the own ones begin; None unless it is set.
    """

    together: Callable[[Tensor], tuple[Tensor, int]] | None = None

    def __init__(self, config: SigLIPPairConfig):
        super().__init__()
        self.config = config
        self.vision = SigLIP(config.vision)
        self.pool = PoolingHead(config.vision)
        self.text = TextTower(config)
        self.scale = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, FIRST_SCALE)
        nn.init.constant_(self.bias, FIRST_BIAS)

    def embed(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Unit vectors of pictures and of texts, float [B, D] each."""
        images = batch.images
        if images.dtype == torch.uint8:
            images = images.to(self.scale.dtype) / 127.5 - 1
        image, text = self.pool(self.vision(images)), self.text(batch.tokens)
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    def forward(self, batch: PairBatch) -> Tensor:
        """The sigmoid loss, a scalar, of every picture with every text of the batch, or of the
        batches of all processes."""
        image, text = self.embed(batch)
        first = 0
        if self.training and self.together is not None:
            text, first = self.together(text)
        return sigmoid_loss(image @ text.T * self.scale.exp() + self.bias, first)


def sigmoid_loss(logits: Tensor, first: int = 0) -> Tensor:
    """logits: float [B, T], row i picture i, column j text j; text first + i is picture i's. Every
    pair is a question of its own: −log σ(±logit), summed over texts and averaged over pictures."""
    own = torch.arange(len(logits), device=logits.device)
    sign = torch.full_like(logits, -1.0)
    sign[own, first + own] = 1.0
    return -F.logsigmoid(sign * logits).sum(1).mean()


def pair_names(config: SigLIPPairConfig) -> Iterator[tuple[str, str]]:
    """Our name and transformers' `SiglipModel`'s of every parameter."""
    yield from vision_names("vision", "vision_model", config.vision.depth)
    yield "pool.probe", "vision_model.head.probe"
    for part in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
        yield f"pool.attention.{part}", f"vision_model.head.attention.{part}"
    modules = {"norm": "layernorm", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    for ours, theirs in modules.items():
        yield from ((f"pool.{ours}.{p}", f"vision_model.head.{theirs}.{p}") for p in LINEAR)
    yield "text.token.weight", "text_model.embeddings.token_embedding.weight"
    yield "text.position.weight", "text_model.embeddings.position_embedding.weight"
    for ours, theirs in vision_names("text", "text_model", config.text_depth):
        if ".blocks." in ours:
            yield ours, theirs
    for part in LINEAR:
        yield f"text.norm.{part}", f"text_model.final_layer_norm.{part}"
        yield f"text.head.{part}", f"text_model.head.{part}"
    yield "scale", "logit_scale"
    yield "bias", "logit_bias"


def save_siglip(pair: SigLIPPair, folder: Path) -> None:
    """Write a folder as transformers' `SiglipModel` does; `backbone.stage0` starts from it."""
    config, vision = pair.config, pair.config.vision
    shared = {
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp,
        "num_attention_heads": vision.heads,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    text = {"vocab_size": config.vocab, "max_position_embeddings": config.text_length}
    text |= {"num_hidden_layers": config.text_depth, "projection_size": vision.width}
    image = {"patch_size": vision.patch, "image_size": vision.resolution}
    values = {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": {"model_type": "siglip_text_model", **shared, **text},
        "vision_config": {
            "model_type": "siglip_vision_model",
            **shared,
            **image,
            "num_hidden_layers": vision.depth,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    own = pair.state_dict()
    tensors = {theirs: own.pop(ours) for ours, theirs in pair_names(config)}
    assert not own, f"{sorted(own)} have no name in Hugging Face's files"
    save_tensors(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
