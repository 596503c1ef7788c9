"""PaliGemma: SigLIP → linear projection → prefix-LM Gemma (arXiv 2407.07726; big_vision
`paligemma.py`).

The sequence is [patches of image 1 … patches of image N, prompt, answer]. Images and prompt are the
*prefix*, block 0, and see each other both ways; the answer is the *suffix*, one block per token.
Letters: B batch, N images, P patches, T text tokens, D width, R resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from backbone.design import PALIGEMMA, Design
from backbone.gemma import (
    GEMMA2_2B,
    GEMMA2_9B,
    GEMMA2_27B,
    GEMMA_2B,
    Gemma,
    GemmaConfig,
    TextEmbedding,
    at_least_float32,
    soft_cap,
)
from backbone.kv_cache import KVCache
from backbone.kv_room import KVRoom
from backbone.masks import prefix_lm
from backbone.numerics import OPENPI_JAX, Numerics
from backbone.siglip import RawPatches, SigLIP, SigLIPConfig


@dataclass(frozen=True)
class PaliGemmaConfig:
    """Sizes of the three parts. `vocab` counts text, 1024 `<loc>` and 128 `<seg>` rows."""

    vision: SigLIPConfig
    language: GemmaConfig
    vocab: int
    numerics: Numerics = OPENPI_JAX
    design: Design = PALIGEMMA

    @property
    def resolution(self) -> int:
        """Side of an image, pixels."""
        return self.vision.resolution * self.design.windows

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return self.vision.tokens * self.design.windows**2


SIGLIP_SO400M = SigLIPConfig(width=1152, depth=27, mlp=4304, heads=16)
PALIGEMMA_3B_224 = PaliGemmaConfig(SIGLIP_SO400M, GEMMA_2B, vocab=257_152)
PALIGEMMA_3B_448 = replace(PALIGEMMA_3B_224, vision=replace(SIGLIP_SO400M, resolution=448))
PALIGEMMA_3B_896 = replace(PALIGEMMA_3B_224, vision=replace(SIGLIP_SO400M, resolution=896))
PALIGEMMA2_3B_224 = PaliGemmaConfig(SIGLIP_SO400M, GEMMA2_2B, vocab=257_152)
PALIGEMMA2_10B_224 = PaliGemmaConfig(SIGLIP_SO400M, GEMMA2_9B, vocab=257_152)
PALIGEMMA2_28B_224 = PaliGemmaConfig(SIGLIP_SO400M, GEMMA2_27B, vocab=257_152)

# Small sizes with the vocabulary of the tokenizer that ships with the package.
PALIGEMMA_TINY = PaliGemmaConfig(
    SigLIPConfig(width=32, depth=1, mlp=64, heads=2, patch=8, resolution=32),
    GemmaConfig(width=32, depth=2, mlp=64, heads=2, head_dim=16),
    vocab=2176,
)
PALIGEMMA_SMALL = PaliGemmaConfig(
    SigLIPConfig(width=96, depth=2, mlp=192, heads=3, patch=12, resolution=72),
    GemmaConfig(width=128, depth=4, mlp=256, heads=4, head_dim=32),
    vocab=2176,
)


@dataclass(frozen=True)
class TextBatch:
    """Images with a prompt and its answer.

    images: uint8 or float in [-1, 1], [B, N, 3, R, R]. image_valid: bool [B, N].
    tokens: int64 [B, T]: BOS, prompt, "\\n", answer, EOS, padding. token_valid: bool [B, T].
    suffix: bool [B, T], True on answer and EOS (the tokens that are predicted).
    counted: bool [B, T], tokens that enter the loss; None: those of the suffix.
    text: int64 [B, T], which of its row's texts a token is of, from 1, where a row holds several
    one behind the other, each as above; None: one each.
    """

    images: Tensor
    image_valid: Tensor
    tokens: Tensor
    token_valid: Tensor
    suffix: Tensor
    counted: Tensor | None = None
    text: Tensor | None = None

    def to(self, device: torch.device | str) -> TextBatch:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return TextBatch(**{name: x.to(device, non_blocking=True) for name, x in given.items()})


def connector(config: PaliGemmaConfig) -> nn.Module:
    """From image features to the language model's width, whose last layer starts at zero:
    big_vision's `head_zeroinit`, by which images enter as zeros."""
    hidden, wide = config.design.connector, config.language.width
    layers = MLPConnector(config.vision.width, hidden, wide) if hidden is not None else None
    return ZeroLinear(config.vision.width, wide) if layers is None else layers


class ZeroLinear(nn.Linear):
    """Starts as zeros."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class MLPConnector(nn.Module):
    """The paper's other connector: a hidden layer with a tanh-GELU."""

    def __init__(self, width: int, hidden: int, wide: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), ZeroLinear(hidden, wide)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class PaliGemma(nn.Module):
    """Images and a prompt in; hidden states, a KV cache, logits or a loss out."""

    def __init__(self, config: PaliGemmaConfig):
        super().__init__()
        self.config = config
        self.vision = SigLIP(config.vision) if config.vision.depth else RawPatches(config.vision)
        self.projector = connector(config)
        numerics = config.numerics
        self.embedding = TextEmbedding(
            config.vocab, config.language.width, numerics.round_text_scale
        )
        self.language = Gemma(config.language, numerics)

    def compile_blocks(self) -> None:
        """Have `torch.compile` fuse each block, and the output, when they are first called.

        For inference: pays off where many answers are wanted, since compiling takes tens of seconds
        for each kind of call (one prompt or several, reading or decoding), and needs a C++ compiler
        on a CPU.
        """
        images = self.vision.blocks if isinstance(self.vision, SigLIP) else ()
        for block in (*images, *self.language.blocks):
            block.compile()
        self.embedding.compile_logits()

    def embed_images(self, images: Tensor) -> Tensor:
        """images: uint8 or float in [-1, 1], [B, N, 3, R, R]. Returns float [B, N·P, D]."""
        flat = rearrange(images, "b n c h w -> (b n) c h w")
        if flat.dtype == torch.uint8:
            wide = torch.promote_types(next(self.projector.parameters()).dtype, torch.float32)
            flat = flat.to(wide) / 127.5 - 1
        design, side = self.config.design, flat.shape[-1]
        if design.detail is not None:
            small = F.interpolate(flat, size=design.detail, mode="bilinear", antialias=True)
            flat = F.interpolate(small, size=side, mode="bilinear", antialias=True)
        windows = {"r": design.windows, "s": design.windows}
        flat = rearrange(flat, "b c (r h) (s w) -> (b r s) c h w", **windows)
        features = self.projector(self.vision(flat))
        return rearrange(features, "(b n) p d -> b (n p) d", b=images.shape[0])

    def embed_prefix(
        self, images: Tensor, image_valid: Tensor, tokens: Tensor, token_valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Lay images and text in one row.

        Shapes as in `TextBatch`. Returns (x float [B, N·P + T, D], valid bool [B, N·P + T]).
        """
        text = self.embedding(tokens)
        image = self.embed_images(images).to(text.dtype)
        patches = repeat(image_valid, "b n -> b (n p)", p=self.config.image_tokens)
        return torch.cat([image, text], dim=1), torch.cat([patches, token_valid], dim=1)

    def prefill(
        self,
        images: Tensor,
        image_valid: Tensor,
        tokens: Tensor,
        token_valid: Tensor,
        cache_only: bool = False,
        suffix: Tensor | None = None,
    ) -> tuple[Tensor | None, KVCache]:
        """Read images and prompt, all in block 0 unless the design says otherwise. Shapes as in
        `TextBatch`, without an answer.

        suffix: where an answer has begun already, bool [B, T]; its tokens come after the prompt's,
        each in a block of its own.
        Returns (hidden states [B, N·P + T, D], or None with `cache_only`; the cache of all of
        them).
        """
        x, valid = self.embed_prefix(images, image_valid, tokens, token_valid)
        begun = torch.zeros_like(token_valid) if suffix is None else suffix
        block = self._blocks(valid, begun)
        return self.language(x, block, valid, cache_only=cache_only)

    def decode(self, tokens: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Read further answer tokens, each in a block of its own.

        tokens: int64 [B, T]. Returns (logits [B, T, vocab] of what follows each; the longer cache).
        Logits are soft-capped where `logit_cap` is set. As in big_vision, those of `logits` and
        after `prefill` are not: the cap changes probabilities, and no order of tokens.
        """
        valid = torch.ones_like(tokens, dtype=torch.bool)
        block = cache.next_block + torch.arange(tokens.shape[1], device=tokens.device)
        hidden, new = self.language(self.embedding(tokens), block, valid, cache)
        return self._capped_logits(hidden), cache.append(new)

    def step(self, tokens: Tensor, room: KVRoom) -> Tensor:
        """`decode`, but the tokens' keys and values are written into `room`, in place.

        tokens: int64 [B, T]. Returns logits [B, T, vocab] of what follows each.
        """
        valid = torch.ones_like(tokens, dtype=torch.bool)
        offset = torch.arange(tokens.shape[1], device=tokens.device)
        block, slots = room.cache.next_block + offset, room.take(tokens.shape[1])
        hidden, _ = self.language(self.embedding(tokens), block, valid, room.cache, slots=slots)
        return self._capped_logits(hidden)

    def _capped_logits(self, hidden: Tensor | None) -> Tensor:
        assert hidden is not None
        return soft_cap(self.embedding.logits(hidden), self.config.language.logit_cap)

    def logits(self, batch: TextBatch) -> Tensor:
        """Teacher-forced logits at every text position, float [B, T, vocab]."""
        return self.embedding.logits(self.hidden_states(batch))

    def hidden_states(self, batch: TextBatch) -> Tensor:
        """What `logits` are computed from, float [B, T, D]."""
        x, valid = self.embed_prefix(
            batch.images, batch.image_valid, batch.tokens, batch.token_valid
        )
        length = batch.tokens.shape[1]
        text = None if batch.text is None else F.pad(batch.text, (x.shape[1] - length, 0))
        block = self._blocks(valid, batch.suffix)
        hidden, _ = self.language(x, block, valid, text=text, wanted=length)
        assert hidden is not None
        return hidden

    def _blocks(self, valid: Tensor, suffix: Tensor) -> Tensor:
        images = valid.shape[1] - suffix.shape[1]
        return prefix_lm(images, suffix, self.config.design.causal)

    def forward(self, batch: TextBatch, label_smoothing: Tensor | None = None) -> Tensor:
        """Text loss, a scalar: the mean over examples of the mean over their answer tokens and EOS,
        or over the tokens that `batch.counted` marks; an example of several texts counts as the
        mean of theirs.

        label_smoothing: float scalar ε in [0, 1). The token that follows is wanted with 1 − ε and
        each of the others with ε / (vocab − 1); torch and Hugging Face spread ε over all of them.
        As in big_vision; Hugging Face averages over all answer tokens of the batch instead.
        """
        counted = batch.suffix if batch.counted is None else batch.counted
        wanted = (counted & batch.token_valid)[:, 1:]
        if batch.text is None:
            alike = wanted.sum(1, keepdim=True)
        else:
            text = batch.text[:, 1:]
            alike = ((text[:, :, None] == text[:, None]) & wanted[:, None]).sum(-1)
        learned = _places(wanted)
        hidden = self.hidden_states(batch)[:, :-1].flatten(0, 1)[learned]
        logits = at_least_float32(self.embedding.logits(hidden))
        loss = F.cross_entropy(logits, batch.tokens[:, 1:].flatten()[learned], reduction="none")
        if label_smoothing is not None:
            every = logits.shape[-1] * logits.logsumexp(-1) - logits.sum(-1)
            share = label_smoothing / (logits.shape[-1] - 1)
            loss = (1 - label_smoothing) * loss + share * (every - loss)
        weight = wanted.to(loss.dtype) / alike.clamp(min=1)  # sums to the number of texts
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1) / len(weight)
        return (loss * weight.flatten()[learned]).sum()


def _places(wanted: Tensor) -> Tensor | slice:
    """Where logits are computed, of `wanted` laid flat: where they are wanted, on a CPU; a card's
    host would have to wait for their number."""
    if wanted.device.type == "cpu" and not isinstance(wanted, FakeTensor):
        return wanted.flatten().nonzero()[:, 0]
    return slice(None)
