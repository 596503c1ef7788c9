"""The model behind the server: a PaliGemma, its tokenizer and its mask codec."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backbone.detections import Detection
from backbone.image import prepare
from backbone.kv_cache import KVCache
from backbone.pretrained import load_pretrained
from vla.serving.model import Ask, Token


class Engine:
    """A `vla.serving.model.Model`."""

    def __init__(self, folder: Path):
        self._model, self._tokenizer = load_pretrained(folder)
        self._model.eval()

    @property
    def resolution(self) -> int:
        """Side of the square that the model sees, in pixels."""
        return self._model.config.vision.resolution

    def prepare(self, image: Image.Image) -> Any:
        config = self._model.config
        return prepare(image, config.vision.resolution, config.numerics.resize)

    def prompt_tokens(self, ask: Ask) -> int:
        pictures = len(ask.images) * self._model.config.vision.tokens
        return pictures + len(self._tokenizer.prefix(ask.prompt))

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def piece(self, id: int) -> bytes:
        piece = self._tokenizer.piece(id)
        if piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace("▁", " ").encode()

    def masks(self, found: Sequence[Detection]) -> list[np.ndarray | None]:
        return [None for _ in found]

    @torch.inference_mode()
    def decode(
        self, asks: Sequence[Ask], wanted: Callable[[int], bool]
    ) -> Iterator[Sequence[Token | None]]:
        tokenizer, size = self._tokenizer, self._model.config.vision.resolution
        prompts = [tokenizer.prefix(ask.prompt) for ask in asks]
        pictures = max(1, max(len(ask.images) for ask in asks))
        length = max(map(len, prompts))
        images = torch.zeros(len(asks), pictures, 3, size, size, dtype=torch.uint8)
        image_valid = torch.zeros(len(asks), pictures, dtype=torch.bool)
        tokens = torch.zeros(len(asks), length, dtype=torch.int64)
        valid = torch.zeros(len(asks), length, dtype=torch.bool)
        for i, (ask, prompt) in enumerate(zip(asks, prompts, strict=True)):
            for n, image in enumerate(ask.images):
                images[i, n] = torch.from_numpy(image).permute(2, 0, 1)
                image_valid[i, n] = True
            tokens[i, : len(prompt)] = torch.tensor(prompt)
            valid[i, : len(prompt)] = True
        hidden, cache = self._model.prefill(images, image_valid, tokens, valid)
        assert hidden is not None
        rows = list(range(len(asks)))
        last = valid.sum(1) - 1 - length
        logits = self._model.embedding.logits(hidden[torch.arange(len(asks)), last])
        generators = [_generator(ask) for ask in asks]
        made = [0] * len(asks)
        ended: set[int] = set()
        while True:
            step: list[Token | None] = [None] * len(asks)
            following = torch.zeros(len(rows), dtype=torch.int64)
            for place, i in enumerate(rows):
                if i in ended or not wanted(i) or made[i] == asks[i].max_tokens:
                    ended.add(i)
                    continue
                token = _choose(logits[place], asks[i], generators[i])
                if token.id == tokenizer.eos:
                    ended.add(i)
                    continue
                made[i] += 1
                step[i] = token
                following[place] = token.id
            yield step
            if len(ended) == len(asks):
                return
            keep = [place for place, i in enumerate(rows) if i not in ended]
            if len(keep) < len(rows):
                rows = [rows[place] for place in keep]
                index = torch.tensor(keep)
                cache, following = _rows(cache, index), following[index]
            logits, cache = self._model.decode(following[:, None], cache)
            logits = logits[:, -1]


def _generator(ask: Ask) -> torch.Generator:
    generator = torch.Generator()
    if ask.seed is None:
        generator.seed()
    else:
        generator.manual_seed(ask.seed)
    return generator


def _choose(logits: torch.Tensor, ask: Ask, generator: torch.Generator) -> Token:
    if ask.temperature == 0:
        id = int(logits.argmax())
    else:
        shares, order = torch.softmax(logits.float() / ask.temperature, -1).sort(descending=True)
        shares[(shares.cumsum(-1) - shares) >= ask.top_p] = 0
        id = int(order[torch.multinomial(shares, 1, generator=generator)])
    if ask.alternatives is None:
        return Token(id)
    logprobs = torch.log_softmax(logits.float(), -1)
    top = logprobs.topk(ask.alternatives)
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token(id, float(logprobs[id]), likeliest)


def _rows(cache: KVCache, rows: torch.Tensor) -> KVCache:
    k, v = tuple(x[rows] for x in cache.k), tuple(x[rows] for x in cache.v)
    return KVCache(k, v, cache.block[rows], cache.valid[rows])
