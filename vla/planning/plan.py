"""What a run takes: parameters, memory for each choice of recomputation, work, speed.

Memory of one GPU is counted, not estimated, as far as tensors go: the run's own model, optimiser
and average are built from shapes and one forward and backward pass is made (`rehearse`). What
sharding gathers and reduces is added by formula. Kernels' own workspace, CUDA's context and
fragmentation are not in it; leave some GB for them (`reserve`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from backbone.lora import add_lora
from vla.config import RunConfig
from vla.planning.live import Envelope
from vla.planning.rehearsal import fake, rehearse
from vla.planning.sketch import sketch
from vla.training.ema import Ema
from vla.training.optimiser import freeze, make_optimiser, trained_parameters
from vla.training.parallel import blocks

__all__ = ["Choice", "Part", "Plan", "plan"]

GB = 1e9
PARTS = ("backbone.vision", "backbone.projector", "backbone.embedding", "backbone.language")


@dataclass(frozen=True)
class Part:
    """Parameters of a part, and how many of them learn."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True)
class Choice:
    """One way to treat activations. recompute: as `ParallelConfig.recompute`. activations, peak:
    bytes of one GPU at the run's batch. work: FLOPs that are computed, in shares of those of
    `Plan.flops`. largest: samples of a micro-batch that one GPU has room for."""

    recompute: int | None
    activations: float
    peak: float
    work: float
    largest: int


@dataclass(frozen=True)
class Plan:
    """Bytes are those of one GPU. batch: samples of a micro-batch on it. weights, gradients,
    moments, average: its shards. gathered: weights and gradients of other shards that are there at
    the same time, at most. validation: the copy of the weights while the average stands in for
    them. forward, flops: of one sample, the second of forward and backward pass without
    recomputation. samples_per_second: of all GPUs, at `mfu` of `tflops`."""

    gpus: int
    shards: int
    precision: str
    batch: int
    cameras: int
    text: int
    resolution: int
    parts: tuple[Part, ...]
    weights: float
    gradients: float
    moments: float
    average: float
    gathered: float
    validation: float
    memory: float
    reserve: float
    choices: tuple[Choice, ...]
    chosen: int | None
    forward: float
    flops: float
    mfu: float
    tflops: float
    samples_per_second: float

    @property
    def peak(self) -> float:
        """Of the run as its config is, bytes."""
        return next(c.peak for c in self.choices if c.recompute == self.chosen)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"peak": self.peak}

    def __str__(self) -> str:
        total, trained = (sum(getattr(p, k) for p in self.parts) for k in ("parameters", "trained"))
        each = f"{self.cameras} cameras, {self.text} text tokens"
        lines = [
            f"{self.gpus} GPUs, {self.shards} shards, {self.precision}; {self.batch} samples on "
            f"each GPU at once: {each}",
            "",
            f"{'parameters':<24}{'all':>16}{'trained':>16}",
            *(f"{p.name:<24}{p.parameters:>16,}{p.trained:>16,}" for p in self.parts),
            f"{'':<24}{total:>16,}{trained:>16,}",
            "",
            "GB on each GPU, whatever the batch",
            f"  weights {_gb(self.weights)}, gradients {_gb(self.gradients)}, moments "
            f"{_gb(self.moments)}, average {_gb(self.average)}",
            f"  gathered and reduced at once {_gb(self.gathered)}; copy while validating "
            f"{_gb(self.validation)}",
            "",
            f"{'recompute':<16}{'activations GB':>16}{'peak GB':>10}{'FLOPs':>8}"
            f"{'largest batch on a GPU':>25}{'of all':>9}",
        ]
        for choice in self.choices:
            mark = " *" if choice.recompute == self.chosen else ""
            largest, of_all = str(choice.largest), str(choice.largest * self.gpus)
            if not choice.largest:
                largest, of_all = "does not fit", "-"
            lines.append(
                f"{_name(choice.recompute) + mark:<16}{_gb(choice.activations):>16}"
                f"{_gb(choice.peak):>10}{choice.work:>8.2f}{largest:>25}{of_all:>9}"
            )
        lines += [
            f"* the config's. Fits: {_gb(self.memory)} GB less {_gb(self.reserve)} for CUDA, "
            "workspaces and fragmentation",
            "",
            f"{self.forward / 1e12:.3g} TFLOP a sample forwards, {self.flops / 1e12:.3g} with the "
            "backward pass",
            f"{self.samples_per_second:.3g} samples/s at {self.mfu:.0%} MFU of "
            f"{self.tflops:g} TFLOP/s, {self.samples_per_second / self.gpus:.3g} on each GPU",
        ]
        return "\n".join(lines)


def plan(
    config: RunConfig,
    *,
    gpus: int = 1,
    memory: float = 80.0,
    reserve: float = 4.0,
    mfu: float = 0.4,
    tflops: float = 989.0,
    cameras: int | None = None,
    text: int | None = None,
) -> Plan:
    """What `config` takes on `gpus` cards of `memory` GB (10⁹ bytes), `reserve` of which stay free.

    mfu: share of a card's peak, `tflops`, that training is taken to reach; 989 is an H100's in
    bfloat16. cameras, text: see `sketch`.
    Raises ValueError where the batch or the shards don't divide over the GPUs, or a number is out
    of its range.
    """
    _check(gpus, memory, reserve, mfu, tflops)
    shards = gpus if config.parallel.shards is None else config.parallel.shards
    parts = config.accumulate * gpus
    if gpus % shards or config.batch_size % parts:
        raise ValueError(
            f"{gpus} GPUs don't divide into copies of {shards} shards, or batch_size "
            f"{config.batch_size} into {config.accumulate} micro-batches for each of them; change "
            "parallel.shards, batch_size, accumulate or --gpus"
        )
    batch = config.batch_size // parts
    drawn = sketch(config, cameras, text)
    precision = "bfloat16" if config.precision == "auto" else config.precision  # on a card
    sharded, half = gpus > 1, precision == "bfloat16"

    def model(unused: Iterable[str] = (), dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.device("meta"):
            built = drawn.model().train()
        freeze(built, config.freeze)
        if config.lora is not None:
            add_lora(built, config.lora)
        for name in unused:
            built.get_parameter(name).requires_grad_(False)
        return built.to(dtype)

    gathered_dtype = torch.bfloat16 if sharded and half else torch.float32
    keeps = not sharded and config.accumulate == 1  # else gradients are counted by themselves
    chosen = config.parallel.recompute
    rehearsals, unused = {}, ()
    for every in sorted({0, 1, 2, chosen or 0}):
        done = rehearse(
            model(unused, gathered_dtype),
            drawn.inputs,
            precision=precision,
            every=every or None,
            gradients=keeps,
            keep_products=config.parallel.keep_products,
        )
        unused = unused or done.unused
        rehearsals[every or None] = done

    final = model(unused)
    trained = trained_parameters(final)
    weights = _bytes(final.parameters())
    gradients = _bytes(trained.values())
    with fake() as device:
        final.to_empty(device=device)
        moments = _bytes(
            value
            for state in make_optimiser(final, config.optim).state.values()
            for value in state.values()
        )
        average = 0 if config.ema is None else _bytes(Ema(final, config.ema).shadow.values())
    share = 1 / shards
    kept = [weights * share, gradients * share, moments * share, average * share]
    validation = 0.0 if config.ema is None else gradients * share
    gathered = _Gathered.of(final, config, gathered_dtype) if sharded else _Gathered(0, 0)
    on_card = 0.0 if config.parallel.offload and sharded else sum(kept)

    def peak(activations: Envelope, samples: int) -> float:
        steps = activations.peak(samples)
        if keeps:
            return max(on_card - gradients + steps, on_card + validation)
        return on_card + max(steps + gathered.during, gathered.end, validation)

    room = (memory - reserve) * GB
    base = rehearsals[None]
    flops = base.forward + base.backward
    choices = tuple(
        Choice(
            every,
            _activations(done.activations, batch),
            peak(done.activations, batch),
            (done.forward + done.backward) / flops,
            _largest(lambda n, done=done: peak(done.activations, n) <= room),
        )
        for every, done in rehearsals.items()
    )
    return Plan(
        gpus,
        shards,
        precision,
        batch,
        drawn.cameras,
        drawn.text,
        drawn.resolution,
        _parts(final),
        *kept,
        gathered=max(gathered.during, gathered.end),
        validation=validation,
        memory=memory * GB,
        reserve=reserve * GB,
        choices=choices,
        chosen=chosen,
        forward=base.forward,
        flops=flops,
        mfu=mfu,
        tflops=tflops,
        samples_per_second=gpus * mfu * tflops * 1e12 / flops,
    )


@dataclass(frozen=True)
class _Gathered:
    """Bytes that sharding adds: during the passes, and at their end without activations."""

    during: float
    end: float

    @classmethod
    def of(cls, model: nn.Module, config: RunConfig, dtype: torch.dtype) -> _Gathered:
        """The root's weights are there from start to end, those of two blocks (one computes, the
        next is on its way) or of all; gradients of one block in the dtype of the pass and, to be
        summed, in float32 or that dtype; the root's at the end. Between micro-batches those of all
        are held, unless they are summed after each."""
        found = list(blocks(model))
        sizes = [_numbers(block.parameters()) for block in found]
        learning = [_numbers(p for p in block.parameters() if p.requires_grad) for block in found]
        root = _numbers(model.parameters()) - sum(sizes)
        root_learns = _numbers(trained_parameters(model).values()) - sum(learning)
        each = dtype.itemsize
        summed = 4 if config.parallel.wide_reduction else each
        held = 0
        if config.parallel.reduce_once and config.accumulate > 1:
            held = summed * _numbers(trained_parameters(model).values())
        there = root + (2 * max(sizes) if config.parallel.reshard else sum(sizes))
        during = each * there + (each + summed) * max(learning) + held
        return cls(during, each * root + (each + summed) * root_learns + held)


def _activations(envelope: Envelope, batch: int) -> float:
    """What grows with the batch at its worst moment."""
    return replace(envelope, moments=tuple((0, each) for _, each in envelope.moments)).peak(batch)


def _largest(fits) -> int:
    """The largest number that fits; 0 if none does. What fits once fits for all that are less."""
    if not fits(1):
        return 0
    high = 2
    while fits(high) and high < 1 << 20:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _parts(model: nn.Module) -> tuple[Part, ...]:
    names = [name for name, _ in model.named_parameters()]
    prefixes = [p for p in (*PARTS, *(p.split(".")[1] for p in PARTS), "expert") if _has(names, p)]
    parts = []
    for prefix in prefixes:
        inside = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{prefix}.")]
        learning = (p for p in inside if p.requires_grad)
        parts.append(Part(prefix, _numbers(inside), _numbers(learning)))
    assert sum(p.parameters for p in parts) == _numbers(model.parameters()), "a part is missing"
    return tuple(parts)


def _has(names: Iterable[str], prefix: str) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") for name in names)


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _name(recompute: int | None) -> str:
    return {None: "none", 1: "every block"}.get(recompute, f"1 in {recompute} blocks")


def _gb(size: float) -> str:
    return f"{size / GB:.3g}"


def _check(gpus: int, memory: float, reserve: float, mfu: float, tflops: float) -> None:
    if gpus < 1:
        raise ValueError(f"--gpus is {gpus}; it must be 1 or more")
    if not 0 <= reserve < memory or math.isinf(memory):
        raise ValueError(f"--reserve of {reserve} GB must be less than --memory of {memory} GB")
    if not 0 < mfu <= 1 or tflops <= 0:
        raise ValueError(f"--mfu is a share in (0, 1] and --tflops above 0, got {mfu}, {tflops}")
