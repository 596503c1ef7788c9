"""What a machine can do at most, for speeds to be compared with."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from backbone.paligemma import PaliGemma


def matmul_flops(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one product of two random matrices [side, side], a multiply-add counting two."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device)


def read_bytes(matrix: Tensor) -> float:
    """Bytes/s at which a large matrix of a half precision is read, to find its largest bits."""
    bits = matrix.view(torch.int16)
    return matrix.nbytes / seconds(bits.amax, matrix.device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of `work`, which is done once before that."""
    work()
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for everything that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prefill_flops(model: PaliGemma, text: int) -> float:
    """Of one picture and `text` tokens, up to the logits of what comes next."""
    config = model.config
    patches = config.vision.tokens
    length = patches + text
    vision = sum(p.numel() for p in model.vision.parameters()) + sum(
        p.numel() for p in model.projector.parameters()
    )
    language = sum(p.numel() for p in model.language.parameters())
    vision_attention = 4 * patches**2 * config.vision.width * config.vision.depth
    stack = config.language
    attention = 4 * length**2 * stack.heads * stack.head_dim * stack.depth
    head = 2 * model.embedding.weight.numel()
    return 2 * patches * vision + vision_attention + 2 * length * language + attention + head


def decode_bytes(model: PaliGemma, length: int) -> float:
    """Read for one further token after `length`: each weight of the language model, the token table
    once, keys and values."""
    weights = (*model.language.parameters(), model.embedding.weight)
    stack, size = model.config.language, model.embedding.weight.element_size()
    cache = 2 * stack.depth * stack.kv_heads * stack.head_dim * length * size
    return sum(p.nbytes for p in weights) + cache
