"""A PaliGemma with random weights answers one prompt, beside transformers' with the same weights.

Prefill is the time from a picture and a prompt, as tensors, to the first token; decode the time of
each further one. Both implementations take turns, and so do the machine's ceilings: a large
product of matrices for prefill, reading a large matrix for decode, which does little else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from backbone.generate import stream
from backbone.numerics import HUGGING_FACE
from backbone.paligemma import PALIGEMMA_3B_224, PALIGEMMA_SMALL, PaliGemma, TextBatch
from backbone.paligemma import PaliGemmaConfig as Sizes
from backbone.tokenizer import Tokenizer
from vla.bench import ceilings
from vla.bench.huggingface import same_inputs, same_model

# Sizes, and the side of the product of matrices that they are compared with.
SIZES: dict[str, tuple[Sizes, int]] = {
    "full": (PALIGEMMA_3B_224, 4096),
    "small": (PALIGEMMA_SMALL, 256),
}
TEXT = 16  # tokens of the prompt
Stamps = list[float]


@dataclass(frozen=True)
class Speed:
    """Medians in seconds, of prefill and of one decoded token."""

    prefill: float
    token: float


@dataclass(frozen=True)
class VLMBench:
    """ours, theirs: of this package and of transformers. parameters: a count. text, patches: tokens
    of the prompt. flops: of prefill, bytes: read per token. matmul, reading: medians of the
    ceilings in FLOP/s and bytes/s.
    """

    ours: Speed
    theirs: Speed
    parameters: int
    patches: int
    text: int
    flops: float
    bytes: float
    matmul: float
    reading: float
    device: str
    dtype: str
    threads: int

    @property
    def ratios(self) -> Speed:
        """Our times as shares of theirs."""
        ours, theirs = self.ours, self.theirs
        return Speed(ours.prefill / theirs.prefill, ours.token / theirs.token)

    @property
    def shares(self) -> Speed:
        """How much of the ceilings ours reaches."""
        flops, bytes_ = self.flops / self.ours.prefill, self.bytes / self.ours.token
        return Speed(flops / self.matmul, bytes_ / self.reading)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratios": asdict(self.ratios), "shares": asdict(self.shares)}

    def __str__(self) -> str:
        ratios, shares = self.ratios, self.shares
        head = (
            f"PaliGemma, {self.parameters / 1e9:.3g} B parameters, {self.dtype}, batch 1, "
            f"{self.patches} patches and {self.text} tokens of text; "
            f"{self.device}, {self.threads} threads"
        )
        rows = [("", "vla", "transformers", "ratio", "of the ceiling")]
        for name in ("prefill", "token"):
            ours, theirs = (f"{1e3 * getattr(x, name):.1f} ms" for x in (self.ours, self.theirs))
            ratio, share = getattr(ratios, name), getattr(shares, name)
            rows.append((name, ours, theirs, f"{ratio:.2f}", f"{share:.0%}"))
        table = [f"{a:<9}{b:>12}{c:>15}{d:>8}{e:>17}" for a, b, c, d, e in rows]
        limits = (
            f"ceilings: {self.matmul / 1e12:.3g} TFLOP/s (matmul), "
            f"{self.reading / 1e9:.3g} GB/s (reading)"
        )
        return "\n".join([head, *table, limits])


def bench_vlm(
    sizes: Sizes,
    side: int,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 3,
    tokens: int = 16,
    compiled: bool = True,
) -> VLMBench:
    """Measure both implementations and the ceilings, `repeats` times in turns after one warm-up.

    side: of the matrices in the ceiling's product. tokens: of each answer, at least 2. compiled: as
    `VLM.compile` leaves ours; theirs is as `generate` runs it.
    Raises ImportError without transformers, ValueError for too few repeats or tokens.
    """
    if repeats < 1 or tokens < 2:
        raise ValueError(f"expected 1 repeat and 2 tokens or more, got {repeats} and {tokens}")
    model = random_model(replace(sizes, numerics=HUGGING_FACE), device, dtype)
    prompt = random_prompt(model)
    theirs = same_model(model)
    if compiled:
        model.compile_blocks()
    runs: dict[str, Callable[[int], Stamps]] = {
        "ours": partial(answer, model, prompt),
        "theirs": partial(their_answer, theirs, same_inputs(prompt, model)),
    }
    for run in runs.values():
        run(tokens)  # with the shapes of what is timed, so that all is compiled
    prefill: dict[str, list[float]] = {name: [] for name in runs}
    further: dict[str, list[float]] = {name: [] for name in runs}
    matmul, reading = [], []
    for _ in tqdm(range(repeats), "vlm", disable=None):
        for name, run in runs.items():
            first, *rest = run(tokens)
            prefill[name].append(first)
            further[name] += rest
        matmul.append(ceilings.matmul_flops(side, dtype, device))
        reading.append(ceilings.read_bytes(model.embedding.weight.data))
    speeds = {name: Speed(median(prefill[name]), median(further[name])) for name in runs}
    patches = sizes.vision.tokens
    return VLMBench(
        **speeds,
        parameters=sum(p.numel() for p in model.parameters()),
        patches=patches,
        text=TEXT,
        flops=ceilings.prefill_flops(model, TEXT),
        bytes=ceilings.decode_bytes(model, patches + TEXT + tokens // 2),
        matmul=median(matmul),
        reading=median(reading),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def random_model(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> PaliGemma:
    """Built without memory, then filled: matrices with variance 1 / fan-in, biases and norms small.

    The weights repeat a block of a million random numbers, which costs seconds instead of minutes.
    """
    with torch.device("meta"):
        model = PaliGemma(sizes).to(dtype)
    model.to_empty(device=device)
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(device)
    for parameter in model.parameters():
        std = 0.1 if parameter.ndim == 1 else 1 / math.sqrt(parameter[0].numel())
        scaled = (block * std).to(dtype)
        for part in parameter.data.view(-1).split(len(scaled)):
            part.copy_(scaled[: len(part)])
    return model.eval().requires_grad_(False)


def random_prompt(model: PaliGemma) -> TextBatch:
    """One picture and TEXT tokens, the first of which is BOS."""
    generator = torch.Generator().manual_seed(1)
    side, vocab = model.config.vision.resolution, model.config.vocab
    images = torch.rand(1, 1, 3, side, side, generator=generator) * 2 - 1
    tokens = torch.randint(Tokenizer.bos + 1, vocab - 1, (1, TEXT), generator=generator)
    tokens[:, 0] = Tokenizer.bos
    valid = torch.ones_like(tokens, dtype=torch.bool)
    prompt = TextBatch(images, torch.ones(1, 1, dtype=torch.bool), tokens, valid, ~valid)
    return prompt.to(model.embedding.weight.device)


def answer(model: PaliGemma, prompt: TextBatch, tokens: int) -> Stamps:
    """Seconds that each token of our greedy answer took; it is read on the host as it comes."""
    stamps = [time.perf_counter()]
    for step in stream(model, prompt, tokens, eos=None):
        step.tokens.tolist()
        stamps.append(time.perf_counter())
    return _between(stamps)


def their_answer(model: Any, inputs: dict[str, Tensor], tokens: int) -> Stamps:
    """The same of transformers' `generate`."""
    stamps = [time.perf_counter()]

    class Clock:
        def put(self, value: Tensor) -> None:
            if value.ndim == 1:  # a token of each row; the prompts come first
                stamps.append(time.perf_counter())

        def end(self) -> None:
            pass

    model.generate(**inputs, max_new_tokens=tokens, do_sample=False, streamer=Clock())
    assert len(stamps) == tokens + 1, f"{len(stamps) - 1} tokens of {tokens}"
    return _between(stamps)


def _between(stamps: Stamps) -> Stamps:
    return [after - before for before, after in pairwise(stamps)]
