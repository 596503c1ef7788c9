"""Gemma 1: the decoder used at two sizes, as the language model and as the action expert.

Letters: B batch, T new tokens, S keys, N query heads, K key/value heads, H head size, D width.
Numerics follow the JAX reference (big_vision `models/ppp/gemma.py`, openpi `models/gemma.py`):
norms, rotary embedding and softmax in float32 whatever the weights are.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbone.attention import attention, spread
from backbone.kv_cache import KVCache, join
from backbone.masks import apart, block_mask, positions, positions_apart
from backbone.numerics import OPENPI_JAX, Numerics
from backbone.row_product import Linear, project

ROPE_BASE = 10_000.0
NORM_EPS = 1e-6


@dataclass(frozen=True)
class GemmaConfig:
    """Sizes of a Gemma stack. `heads` must be a multiple of `kv_heads`; `head_dim` must be even.

    What Gemma 2 adds, off by default:
    post_norms: what attention and MLP add is normed first.
    attention_cap, logit_cap: cap · tanh(x / cap) on attention logits, and on the logits of decoded
        tokens (see `PaliGemma.decode`); None: no cap.
    query_scale: what queries are multiplied by; None: head_dim^−½.
    window: tokens that blocks 0, 2, 4, … look back over, all of a token's own block excepted; None:
        all of them, as in big_vision, which never implemented the window.
    """

    width: int
    depth: int
    mlp: int
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 256
    post_norms: bool = False
    attention_cap: float | None = None
    logit_cap: float | None = None
    query_scale: float | None = None
    window: int | None = None

    def __post_init__(self):
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"Gemma needs heads ({self.heads}) to be a multiple of kv_heads ({self.kv_heads}) "
                f"and an even head_dim ({self.head_dim})"
            )


GEMMA_2B = GemmaConfig(width=2048, depth=18, mlp=16_384)
GEMMA_300M = GemmaConfig(width=1024, depth=18, mlp=4096)

_GEMMA2 = {"post_norms": True, "attention_cap": 50.0, "logit_cap": 30.0}
GEMMA2_2B = GemmaConfig(width=2304, depth=26, mlp=9216, heads=8, kv_heads=4, **_GEMMA2)
GEMMA2_9B = GemmaConfig(width=3584, depth=42, mlp=14_336, heads=16, kv_heads=8, **_GEMMA2)
GEMMA2_27B = GemmaConfig(
    width=4608,
    depth=46,
    mlp=36_864,
    heads=32,
    kv_heads=16,
    head_dim=128,
    query_scale=(4608 / 32) ** -0.5,
    **_GEMMA2,
)


def at_least_float32(x: Tensor) -> Tensor:
    """Raise half precisions to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(x / cap), or x where there is no cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def rope_angles(
    position: Tensor, head_dim: int, dtype: torch.dtype, rounded_to: torch.dtype | None = None
) -> Tensor:
    """Rotary angles [B, 1, T, H/2] of int positions [B, T]: position · 10000^(−2j/H).

    rounded_to: what the frequencies are rounded to before they are multiplied.
    """
    j = torch.arange(head_dim // 2, device=position.device, dtype=dtype)
    frequency = ROPE_BASE ** (-2 * j / head_dim)
    if rounded_to is not None:
        frequency = frequency.to(rounded_to).to(dtype)
    return position[:, None, :, None].to(dtype) * frequency


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (j, j + H/2) of x [B, heads, T, H], in the precision of cos and sin."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) · (1 + weight) in float32, cast back at the end. The weight starts at 0.

    round_scale: 1 + weight is rounded to the weight's dtype, as JAX does.
    """

    def __init__(self, width: int, round_scale: bool = True):
        super().__init__()
        self.round_scale = round_scale
        self.weight = nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        weight = self.weight if self.round_scale else at_least_float32(self.weight)
        scale = (1 + weight).to(wide.dtype)
        return F.rms_norm(wide, scale.shape, scale, NORM_EPS).to(x.dtype)


class Attention(nn.Module):
    """Multi-query or grouped-query attention with rotary positions, fused softmax, no biases."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.head_dim, self.cap = config.head_dim, config.attention_cap
        self.scale = config.query_scale or config.head_dim**-0.5
        self.q_proj = Linear(config.width, config.heads * config.head_dim)
        self.k_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.width)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of the new tokens, each [B, K, T, H]."""
        k = rotate(self._heads(self.k_proj(x)), cos, sin)
        return k, self._heads(self.v_proj(x))

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor, cos: Tensor, sin: Tensor):
        """Attend from x [B, T, D] to k, v [B, K, S, H] under mask [B, 1, T, S]: [B, T, D]."""
        q = rotate(self._heads(self.q_proj(x)), cos, sin)
        if self.cap is None:
            out = attention(q, k, v, mask, self.scale)
        else:
            k, v = (spread(x, q.shape[1]) for x in (k, v))
            out = capped_attention(q, k, v, mask, self.scale, self.cap)
        return self.o_proj(rearrange(out, "b n t h -> b t (n h)"))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (n h) -> b n t h", h=self.head_dim)


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float
) -> Tensor:
    """Attention with soft-capped logits, which no fused kernel offers on all devices: Gemma 2 alone
    pays for its matrix of probabilities. q: [B, N, T, H]; k, v: [B, N, S, H]; logits and softmax
    in float32 or wider."""
    logits = soft_cap(at_least_float32(q) @ at_least_float32(k).mT * scale, cap)
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.softmax(-1).to(v.dtype) @ v


class MLP(nn.Module):
    """GeGLU: down(gelu_tanh(gate(x)) · up(x)), no biases."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.gate_proj = Linear(config.width, config.mlp)
        self.up_proj = Linear(config.width, config.mlp)
        self.down_proj = Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm block. An ordinary module, so FSDP2 and compile can take it alone."""

    def __init__(self, config: GemmaConfig, numerics: Numerics = OPENPI_JAX):
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.width, numerics.round_norm_scale)

        self.attention_norm = norm()
        self.attention = Attention(config)
        self.mlp_norm = norm()
        self.mlp = MLP(config)
        self.post_attention_norm = norm() if config.post_norms else nn.Identity()
        self.post_mlp_norm = norm() if config.post_norms else nn.Identity()
        self.dropout = nn.Dropout(0.0)  # off; `set_dropout` turns it on for a training run

    def forward(
        self,
        x,
        mask,
        cos,
        sin,
        past: tuple[Tensor, Tensor] | None,
        wanted: int | None = None,
        slots: Tensor | None = None,
    ):
        """Return (x after the block [B, T, D], (k, v) of the new tokens).

        past: keys and values of earlier tokens, or None. mask: bool [B, 1, T, S] over past and new.
        wanted: x is that of the last so many tokens alone, [B, wanted, D], though all have keys and
        values; None: of all.
        slots: int64 [T], where in `past` the new keys and values are written, in place; else they
        follow it.
        """
        h = self.attention_norm(x)
        new = self.attention.keys_values(h, cos, sin)
        if wanted is not None:
            since = x.shape[1] - wanted
            x, h, mask = x[:, since:], h[:, since:], mask[:, :, since:]
            cos, sin = cos[:, :, since:], sin[:, :, since:]
        if wanted == 0:
            return x, new
        k, v = new if past is None else (join(*p, slots, 2) for p in zip(past, new, strict=True))
        attended = self.post_attention_norm(self.attention(h, k, v, mask, cos, sin))
        x = x + self.dropout(attended)
        return x + self.post_mlp_norm(self.dropout(self.mlp(self.mlp_norm(x)))), new


class Gemma(nn.Module):
    """The stack: embeddings in, hidden states and the new tokens' own cache out."""

    def __init__(self, config: GemmaConfig, numerics: Numerics = OPENPI_JAX):
        super().__init__()
        self.config, self.numerics = config, numerics
        self.blocks = nn.ModuleList(Block(config, numerics) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, numerics.round_norm_scale)

    @property
    def beyond_cache(self) -> tuple[str, ...]:
        """The modules that the cache doesn't depend on, by name: of the last block all but the
        norm, keys and values of its attention; the final norm."""
        last = len(self.blocks) - 1
        later = ["attention.q_proj", "attention.o_proj"]
        for name, module in self.blocks[last].named_children():
            if name not in ("attention_norm", "attention") and list(module.parameters()):
                later.append(name)
        return *(f"blocks.{last}.{name}" for name in later), "norm"

    def forward(
        self,
        x: Tensor,
        block: Tensor,
        valid: Tensor,
        cache: KVCache | None = None,
        cache_only: bool = False,
        slots: Tensor | None = None,
        text: Tensor | None = None,
        wanted: int | None = None,
    ) -> tuple[Tensor | None, KVCache]:
        """Read new tokens after those in `cache`.

        x: float [B, T, D] embeddings. block: int64 [B, T], not smaller than the cache's ids of
        tokens that must be seen. valid: bool [B, T]. cache: earlier tokens, or None.
        cache_only: only keys and values are wanted, so the last block's query, output and MLP and
        the final norm are dead work and are skipped (5.5 % of π0's prefix); hidden states are then
        None.
        slots: int64 [T], where in `cache` the new tokens are written, in place (see
        `backbone.kv_room`); else the cache stays as it is.
        text: int64 [B, T], which of its row's texts a token is of, 0 on images, where a row holds
        several (`backbone.masks.apart`); there can be no cache then.
        wanted: hidden states are those of the last so many tokens alone, and what the last block
        would compute of others' is skipped; None: of all.

        Returns (hidden states after the final norm, float [B, T, D]; the *new* tokens' cache).
        """
        masks, cos, sin = self.geometry(x, block, valid, cache, slots, text)
        keys, values = [], []
        last = len(self.blocks) - 1
        wanted = 0 if cache_only else wanted
        for i, layer in enumerate(self.blocks):
            past = None if cache is None else (cache.k[i], cache.v[i])
            mask = masks[i % 2]
            x, (k, v) = layer(x, mask, cos, sin, past, wanted if i == last else None, slots)
            keys.append(k)
            values.append(v)
        new = KVCache(tuple(keys), tuple(values), block, valid)
        return (None if cache_only else self.norm(x)), new

    def geometry(
        self,
        x: Tensor,
        block: Tensor,
        valid: Tensor,
        cache: KVCache | None,
        slots: Tensor | None = None,
        text: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """What blocks share: the masks of even and of odd ones, bool [B, 1, T, S], over cached and
        new tokens, and the cosines and sines of the new tokens' rotary angles, float32 or wider
        [B, 1, T, H/2], or of x's dtype where the numerics rotate in it."""
        assert cache is None or text is None, "several texts can't be read after a cache"
        if text is None:
            position = positions(valid, 0 if cache is None else cache.length)
        else:
            position = positions_apart(valid, text)
        key_block, key_valid = block, valid
        if cache is not None:
            key_block = join(cache.block, block, slots, 1)
            key_valid = join(cache.valid, valid, slots, 1)
        mask = block_mask(block, key_block, key_valid)
        if text is not None:
            mask = mask & apart(text)
        windowed = mask
        if self.config.window is not None:
            key_position = position if cache is None else positions(key_valid)
            back = position[:, :, None] - key_position[:, None]
            near = (back < self.config.window) | (key_block[:, None] == block[:, :, None])
            windowed = mask & near[:, None]
        wide = torch.promote_types(x.dtype, torch.float32)
        rounded_to = x.dtype if self.numerics.round_rope_frequencies else None
        angles = rope_angles(position, self.config.head_dim, wide, rounded_to)
        dtype = x.dtype if self.numerics.rotate_in_activation else wide
        return (windowed, mask), angles.cos().to(dtype), angles.sin().to(dtype)


def set_dropout(model: nn.Module, share: float) -> None:
    """Drop this share of what attention and MLP of every Gemma block in `model` add, in training.

    Two places a block, elementwise, as in big_vision: attention's after its post-norm, the MLP's
    before it. Probabilities, embeddings and the image encoder are left alone.
    Raises ValueError if `share` is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"dropout is {share}; it is a share in [0, 1)")
    for module in model.modules():
        if isinstance(module, Block):
            module.dropout.p = share


class TextEmbedding(nn.Module):
    """Token table, tied to the output: rows · √D on the way in, dot products on the way out.

    round_scale: √D is rounded to the table's dtype before it multiplies.
    """

    def __init__(self, vocab: int, width: int, round_scale: bool = True):
        super().__init__()
        self.round_scale = round_scale
        self.weight = nn.Parameter(torch.empty(vocab, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # random numbers there make torch import for seconds
            nn.init.normal_(self.weight, std=1 / math.sqrt(self.weight.shape[1]))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, T]. Returns float [B, T, D], scaled by √D (images are never scaled)."""
        scale: float | Tensor = math.sqrt(self.weight.shape[1])
        if self.round_scale:  # not read back into Python, which would wait for the device
            scale = torch.tensor(scale, dtype=self.weight.dtype)
        return F.embedding(tokens, self.weight) * scale

    def compile_logits(self) -> None:
        """Have `torch.compile` fuse `logits`, which isn't this module's `forward`."""
        self.logits = torch.compile(self.logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: float [..., D]. Returns float [..., vocab], without bias or soft-cap."""
        return project(hidden.to(self.weight.dtype), self.weight)
