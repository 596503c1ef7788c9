"""The model behind the server: a `VLM`, asked about pictures and prompts of all lengths at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbone.detections import Detection
from backbone.generate import stream
from backbone.image import prepare
from backbone.numerics import Resize
from backbone.prompts import Prompt, batch_prompts
from backbone.sampling import keep_nucleus
from backbone.vlm import VLM
from vla.serving.model import Ask, Token


class Engine:
    """A `vla.serving.model.Model`."""

    def __init__(self, vlm: VLM):
        self._vlm, self._model, self._tokenizer = vlm, vlm.model, vlm.tokenizer
        self._resize: Resize = vlm.model.config.numerics.resize
        known = torch.arange(vlm.model.config.vocab, device=vlm.device) < self._tokenizer.vocab_size
        self._known = None if known.all() else known  # Hugging Face's table has rows to spare

    @property
    def resolution(self) -> int:
        """Side of the square that the model sees, in pixels."""
        return self._model.config.resolution

    def prepare(self, image: np.ndarray) -> Any:
        """The model's square, which `batch_prompts` leaves as it is; the picture itself where that
        square is not of uint8."""
        square = prepare(image, self.resolution, self._resize)
        return square if square.dtype == np.uint8 else image

    def prompt_tokens(self, ask: Ask) -> int:
        pictures = len(ask.images) * self._model.config.image_tokens
        return pictures + len(self._tokenizer.prefix(ask.prompt))

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def piece(self, id: int) -> bytes:
        piece = self._tokenizer.piece(id)
        if piece.startswith("<0x"):  # a byte of a character that has no piece of its own
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    @torch.no_grad()
    def masks(self, found: Sequence[Detection]) -> list[np.ndarray | None]:
        """All None where the VLM has no mask codec."""
        codec, drawn = self._vlm.codec, [item.codes for item in found if item.codes is not None]
        if codec is None or not drawn:
            return [None for _ in found]
        codes = torch.tensor(drawn, device=codec.codebook.device)
        grey = (codec.decode(codes) * 255).round().to(torch.uint8).cpu().numpy()
        masks = iter(grey)
        return [None if item.codes is None else next(masks) for item in found]

    def decode(
        self, asks: Sequence[Ask], wanted: Callable[[int], bool]
    ) -> Iterator[Sequence[Token | None]]:
        choices = _Choices(asks, wanted, self._tokenizer.eos)
        prompts = [Prompt(ask.images, ask.prompt) for ask in asks]
        batch = batch_prompts(prompts, self._tokenizer, self.resolution, self._resize)
        most = max(ask.max_tokens for ask in asks)
        for _ in stream(
            self._model,
            batch.to(self._vlm.device),
            most,
            choices.choose,
            allowed=self._known,
            check_every=1,
        ):
            yield choices.row
        yield [None] * len(asks)


class _Choices:
    """Chooses each row's next token as its ask says. row: what the last step chose."""

    def __init__(self, asks: Sequence[Ask], wanted: Callable[[int], bool], eos: int):
        self._asks, self._wanted, self._eos = asks, wanted, eos
        self._generators = [_generator(ask.seed) for ask in asks]
        self._going = [True] * len(asks)
        self._steps = 0
        self.row: list[Token | None] = [None] * len(asks)

    def choose(self, logits: Tensor) -> Tensor:
        """float32 [B, vocab] → int64 [B]; EOS for answers that have ended for whatever reason."""
        likeliest = logits.argmax(-1).tolist()
        ids = [self._eos] * len(self._asks)
        self.row = [None] * len(self._asks)
        for i, ask in enumerate(self._asks):
            if not (self._going[i] and self._steps < ask.max_tokens and self._wanted(i)):
                self._going[i] = False
                continue
            drawn = ask.temperature > 0
            id = _draw(logits[i], ask, self._generators[i]) if drawn else likeliest[i]
            if id == self._eos:
                self._going[i] = False
            else:
                ids[i], self.row[i] = id, _token(id, logits[i], ask.alternatives)
        self._steps += 1
        return torch.tensor(ids, device=logits.device)


def _generator(seed: int | None) -> torch.Generator:
    """On the CPU, so that a seed draws the same on every device and in every batch."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _draw(logits: Tensor, ask: Ask, generator: torch.Generator) -> int:
    """logits: float32 [vocab]."""
    logits = keep_nucleus(logits[None].cpu() / ask.temperature, ask.top_p)
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def _token(id: int, logits: Tensor, alternatives: int | None) -> Token:
    if alternatives is None:
        return Token(id)
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(alternatives)
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token(id, float(logprobs[id]), likeliest)
