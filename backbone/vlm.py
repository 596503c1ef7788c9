"""A vision-language model in a folder: image and text in, text out.

vlm = VLM.from_pretrained(folder)
vlm.caption(image)                        vlm.answer(image, "what is on the plate?")
vlm.detect(image, ["cup", "spoon"])       vlm.generate([first, second], "caption en", beams=3)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from backbone import tasks
from backbone.constraints import DetectGrammar
from backbone.decoding import Decoding, decode
from backbone.findings import Findings, read_findings
from backbone.generate import Step, stream
from backbone.mask_codec import MaskCodec, codec_beside, load_codec
from backbone.paligemma import PaliGemma, TextBatch
from backbone.pretrained import load_pretrained
from backbone.prompts import Picture, Prompt, batch_prompts
from backbone.restriction import Allowed
from backbone.tokenizer import Tokenizer

BATCH = 16  # prompts that are answered side by side
LONG: dict[str, Any] = {"max_new_tokens": 256}  # where an answer lists things
WANTED = "expected a uint8 RGB array [height, width, 3], a PIL image, or a list of them"


@dataclass(frozen=True)
class Answer:
    """text: of a given start and the tokens. tokens: those generated, EOS included where it was
    said. log_probs: theirs, of the softmax over all tokens at temperature 1."""

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]

    @property
    def score(self) -> float:
        """Log-probability of the answer, EOS included."""
        return sum(self.log_probs)


class VLM:
    """A PaliGemma with its vocabulary, and with a mask codec if it is to segment."""

    def __init__(self, model: PaliGemma, tokenizer: Tokenizer, codec: MaskCodec | None = None):
        self.model, self.tokenizer, self.codec = model.eval(), tokenizer, codec

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = "bfloat16",
        tokenizer: Tokenizer | str | Path | None = None,
        resolution: int | None = None,
    ) -> VLM:
        """Read a PaliGemma or PaliGemma 2 with its vocabulary; the files tell who wrote them.

        path: a folder of this package or of Hugging Face, or an .npz file of big_vision.
        device, dtype: of the weights. tokenizer: instead of the one beside the weights.
        resolution: of the images, in pixels, where another is wanted than the weights have: their
        position embeddings are resampled as big_vision does it.
        A mask codec beside the weights (`mask_codec.safetensors` or big_vision's `vae-oid.npz`)
        is read too, in float32.
        Raises FileNotFoundError if a file is missing, ValueError if the files do not belong
        together or what they hold cannot be used.
        """
        model, vocabulary = load_pretrained(
            path, device=device, dtype=dtype, tokenizer=tokenizer, resolution=resolution
        )
        beside = codec_beside(path)
        return cls(model, vocabulary, None if beside is None else load_codec(beside).to(device))

    def compile(self) -> VLM:
        """Compile the model, in place, as `PaliGemma.compile_blocks` says; returns this VLM."""
        self.model.compile_blocks()
        return self

    # What PaliGemma was trained to be asked (`backbone.tasks`). `image` is one picture, or a list
    # of them, each of which gets an answer. Options are `Decoding`'s fields and `generator`.

    @overload
    def caption(self, image: Picture, lang: str = "en", **options: Any) -> str: ...
    @overload
    def caption(self, image: Sequence[Picture], lang: str = "en", **options: Any) -> list[str]: ...
    def caption(self, image, lang="en", **options):
        """A short caption, in one of `tasks.LANGUAGES`."""
        return self._say(image, tasks.caption(lang), options)

    @overload
    def describe(self, image: Picture, lang: str = "en", **options: Any) -> str: ...
    @overload
    def describe(self, image: Sequence[Picture], lang: str = "en", **options: Any) -> list[str]: ...
    def describe(self, image, lang="en", **options):
        """A longer caption."""
        return self._say(image, tasks.describe(lang), LONG | options)

    @overload
    def ocr(self, image: Picture, **options: Any) -> str: ...
    @overload
    def ocr(self, image: Sequence[Picture], **options: Any) -> list[str]: ...
    def ocr(self, image, **options):
        """All text in the picture, from the top."""
        return self._say(image, tasks.ocr(), LONG | options)

    @overload
    def answer(self, image: Picture, question: str, lang: str = "en", **options: Any) -> str: ...
    @overload
    def answer(
        self, image: Sequence[Picture], question: str, lang: str = "en", **options: Any
    ) -> list[str]: ...
    def answer(self, image, question, lang="en", **options):
        """The answer to a question, in `lang`."""
        return self._say(image, tasks.answer(question, lang), options)

    @overload
    def detect(
        self, image: Picture, names: Sequence[str], *, restrict: bool = False, **options: Any
    ) -> Findings: ...
    @overload
    def detect(
        self,
        image: Sequence[Picture],
        names: Sequence[str],
        *,
        restrict: bool = False,
        **options: Any,
    ) -> list[Findings]: ...
    def detect(self, image, names, *, restrict=False, **options):
        """The boxes of things of these names, in pixels; what of the answer is no box is reported.

        restrict: let the model say nothing but well-formed boxes of these names.
        """
        allowed = self._grammar(names, segment=False) if restrict else None
        return self._find(image, tasks.detect(names), None, allowed, options)

    @overload
    def segment(
        self, image: Picture, names: Sequence[str], *, restrict: bool = False, **options: Any
    ) -> Findings: ...
    @overload
    def segment(
        self,
        image: Sequence[Picture],
        names: Sequence[str],
        *,
        restrict: bool = False,
        **options: Any,
    ) -> list[Findings]: ...
    def segment(self, image, names, *, restrict=False, **options):
        """Boxes and masks of things of these names; a thing whose mask is cut short has None.

        Raises ValueError without a `codec`, which draws masks from the answer's codes.
        """
        if self.codec is None:
            raise ValueError(
                "segment needs a mask codec; set vlm.codec = load_codec('vae-oid.npz')"
            )
        allowed = self._grammar(names, segment=True) if restrict else None
        return self._find(image, tasks.segment(names), self.codec, allowed, options)

    # Any prompt

    @overload
    def generate(self, images: Picture | Sequence[Picture], prompt: str, **options: Any) -> str: ...
    @overload
    def generate(
        self, images: Sequence[Picture | Sequence[Picture]], prompt: Sequence[str], **options: Any
    ) -> list[str]: ...
    def generate(self, images, prompt, **options):
        """What follows `prompt`.

        With one prompt, `images` is its picture, or its pictures in order (frames of a video; []
        for none). With a list of prompts, it holds for each of them such a picture or list.
        start: how the answer begins; what is returned begins with it. Further options are
        `Decoding`'s fields and `generator`.
        """
        texts = [answer.text for answer in self.answers(images, prompt, **options)]
        return texts[0] if isinstance(prompt, str) else texts

    def answers(
        self,
        images: Picture | Sequence[Any],
        prompt: str | Sequence[str],
        *,
        start: str = "",
        generator: torch.Generator | None = None,
        allowed: Allowed | None = None,
        **options: Any,
    ) -> list[Answer]:
        """`generate` with tokens and log-probabilities, one `Answer` per prompt.

        generator: draws tokens where `temperature` is above 0. allowed: restricts them, as in
        `backbone.generate.stream`.
        """
        decoding = Decoding(**options)
        asked = [Prompt(pictures, text, start) for pictures, text in _paired(images, prompt)]
        found: list[Answer] = []
        for at in range(0, len(asked), BATCH):
            batch = self._batch(asked[at : at + BATCH])
            rows = decode(self.model, batch, decoding, generator, self._limited(allowed))
            given = self.tokenizer.encode(start)
            for tokens, log_probs in zip(
                rows.tokens.tolist(), rows.log_probs.tolist(), strict=True
            ):
                found.append(self._answer(given, tokens, log_probs))
        return found

    def stream(
        self,
        images: Picture | Sequence[Picture],
        prompt: str,
        *,
        start: str = "",
        generator: torch.Generator | None = None,
        allowed: Allowed | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the answer to one prompt piece by piece; together they are `generate`'s text.

        Raises ValueError for beams or best_of, which know their answer at the end only.
        """
        decoding = Decoding(**options)
        if decoding.beams > 1 or decoding.best_of > 1:
            raise ValueError("beams and best_of can't be streamed; their answer stands at the end")
        [(pictures, text)] = _paired(images, prompt)
        steps = stream(
            self.model,
            self._batch([Prompt(pictures, text, start)]),
            decoding.max_new_tokens,
            decoding.choose(generator),
            allowed=self._limited(allowed),
            check_every=1,
        )
        return self._pieces(self.tokenizer.encode(start), steps)

    def _say(self, image: Any, prompt: str, options: dict[str, Any]) -> Any:
        if _is_picture(image):
            return self.generate(image, prompt, **options)
        images = _pictures(image)
        return self.generate(images, [prompt] * len(images), **options)

    def _find(
        self,
        image: Any,
        prompt: str,
        codec: MaskCodec | None,
        allowed: Allowed | None,
        options: dict[str, Any],
    ) -> Any:
        images = [image] if _is_picture(image) else _pictures(image)
        options = {**LONG, "allowed": allowed, **options}
        said = self.answers(images, [prompt] * len(images), **options)
        found = [
            read_findings(answer.text, _size(picture), codec)
            for answer, picture in zip(said, images, strict=True)
        ]
        return found[0] if _is_picture(image) else found

    def _grammar(self, names: Sequence[str], segment: bool) -> Allowed:
        vocab, device = self.model.config.vocab, self.device
        return DetectGrammar(
            self.tokenizer, names, segment=segment, vocab_size=vocab, device=device
        )

    def _limited(self, allowed: Allowed | None) -> Allowed | None:
        """Never a row of the table that stands for no token (Hugging Face's has 64 of them)."""
        rows, known = self.model.config.vocab, self.tokenizer.vocab_size
        if allowed is not None or rows == known:
            return allowed
        return torch.arange(rows, device=self.device) < known

    def _batch(self, prompts: Sequence[Prompt]) -> TextBatch:
        config = self.model.config
        size, resize = config.resolution, config.numerics.resize
        return batch_prompts(prompts, self.tokenizer, size, resize).to(self.device)

    def _answer(self, given: list[int], tokens: list[int], log_probs: list[float]) -> Answer:
        eos = self.tokenizer.eos
        length = tokens.index(eos) + 1 if eos in tokens else len(tokens)
        text = self.tokenizer.decode(given + tokens[:length])
        return Answer(text, tuple(tokens[:length]), tuple(log_probs[:length]))

    def _pieces(self, given: list[int], steps: Iterator[Step]) -> Iterator[str]:
        """A character that is spelled in bytes is kept back until it is whole."""
        new = list(given)
        for step in steps:
            new.append(int(step.tokens[0]))
            text = self.tokenizer.decode(new)
            if text and not text.endswith("\ufffd"):
                yield text
                new = []
            if step.finished[0]:
                break
        if rest := self.tokenizer.decode(new):
            yield rest


def _is_picture(image: object) -> bool:
    return isinstance(image, np.ndarray | Image.Image)


def _pictures(images: Any) -> list[Picture]:
    """A list of pictures, or ValueError."""
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise ValueError(f"{WANTED}, got {type(images).__name__}")
    for image in images:
        if not _is_picture(image):
            raise ValueError(f"{WANTED}, got a list that holds {type(image).__name__}")
    return list(images)


def _paired(images: Any, prompt: Any) -> list[tuple[tuple[Picture, ...], str]]:
    """The pictures of each prompt."""
    if isinstance(prompt, str):
        images, prompt = [images], [prompt]
    if not isinstance(prompt, Sequence) or not all(isinstance(p, str) for p in prompt):
        raise ValueError(f"expected a prompt or a list of prompts, got {prompt!r}")
    if not isinstance(images, Sequence) or len(images) != len(prompt):
        got = len(images) if isinstance(images, Sequence) else type(images).__name__
        raise ValueError(
            f"{len(prompt)} prompts need a list of as many pictures (or lists of pictures), "
            f"got {got}"
        )
    groups = [[group] if _is_picture(group) else _pictures(group) for group in images]
    return [(tuple(group), text) for group, text in zip(groups, prompt, strict=True)]


def _size(picture: Picture) -> tuple[int, int]:
    """(height, width)."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return picture.shape[0], picture.shape[1]
