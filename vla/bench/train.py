"""A training step of π0 with random weights, beside one of LeRobot's π0 in the same sizes.

A step is a forward and backward pass, clipping and AdamW, each as its own trainer makes it: ours by
`vla.training.update`, with float32 weights and the precision that is asked for; LeRobot's with the
AdamW that its config describes, and weights in that precision, as its `dtype` means it, and in
float32, its default. All take turns on one batch, and so does a product of matrices, the machine's
ceiling.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from backbone.gemma import GemmaConfig
from backbone.lora import LoRAConfig, add_lora
from backbone.paligemma import PaliGemmaConfig
from backbone.siglip import SigLIPConfig
from vla.batch import Batch
from vla.bench import ceilings
from vla.bench.lerobot import their_batch, their_policy
from vla.bench.memory import allocated_at_most
from vla.config import OptimConfig
from vla.pi0 import PI0, Pi0, Pi0Config
from vla.training.job import Microbatch
from vla.training.optimiser import freeze, make_optimiser
from vla.training.parallel import ParallelConfig, parallelise
from vla.training.update import update
from vla.training.utilisation import Utilisation, peak_tflops
from vla.training.world import ALONE

__all__ = ["SIZES", "Step", "TrainBench", "bench_train"]


def _sizes(vision: SigLIPConfig, language: GemmaConfig, expert: GemmaConfig) -> Pi0Config:
    return Pi0Config(
        PaliGemmaConfig(vision, language, vocab=8192), replace(PI0.expert, gemma=expert)
    )


# S and M: 44 and 240 million parameters, 224 pixels, eight heads (LeRobot has no other number).
SIZES: dict[str, Pi0Config] = {
    "toy": _sizes(
        SigLIPConfig(width=32, depth=1, mlp=64, heads=2, patch=14, resolution=56),
        GemmaConfig(width=64, depth=2, mlp=128, heads=8, head_dim=8),
        GemmaConfig(width=32, depth=2, mlp=64, heads=8, head_dim=8),
    ),
    "S": _sizes(
        SigLIPConfig(width=384, depth=6, mlp=1536, heads=6),
        GemmaConfig(width=512, depth=6, mlp=2048, head_dim=64),
        GemmaConfig(width=256, depth=6, mlp=1024, head_dim=64),
    ),
    "M": _sizes(
        SigLIPConfig(width=1152, depth=6, mlp=4304, heads=16),
        GemmaConfig(width=1024, depth=6, mlp=4096),
        GemmaConfig(width=512, depth=6, mlp=2048),
    ),
    "full": PI0,
}
TEXT = 48  # tokens of a prompt
Mode = Literal["full", "lora", "expert"]


@dataclass(frozen=True)
class Step:
    """One way to make a step. wall, cpu: medians in seconds, the second of all threads together.
    peak: bytes at most, weights and moments among them. mfu: of the ceiling; None where it isn't
    known (LeRobot's work isn't counted)."""

    name: str
    wall: float
    cpu: float
    peak: int
    parameters: int
    mfu: float | None


@dataclass(frozen=True)
class TrainBench:
    """steps: ours first. flops: of ours, forwards and backwards without recomputation. ceiling:
    FLOP/s."""

    size: str
    mode: str
    precision: str
    optimiser: str
    batch: int
    cameras: int
    flops: float
    ceiling: float
    steps: tuple[Step, ...]
    device: str
    threads: int

    def ratios(self, step: Step) -> tuple[float, float]:
        """Its wall and CPU time as multiples of ours without recomputation."""
        return step.wall / self.steps[0].wall, step.cpu / self.steps[0].cpu

    def as_json(self) -> dict[str, Any]:
        ratios = {step.name: self.ratios(step) for step in self.steps}
        return asdict(self) | {"ratios": ratios}

    def __str__(self) -> str:
        head = (
            f"π0 {self.size}, {self.mode}, {self.precision}, {self.optimiser}, batch {self.batch}, "
            f"{self.cameras} cameras; {self.device}, {self.threads} threads"
        )
        rows = [("", "parameters", "ms", "of ours", "CPU ms", "of ours", "samples/s", "MFU", "GB")]
        for step in self.steps:
            wall, cpu = self.ratios(step)
            rows.append(
                (
                    step.name,
                    f"{step.parameters / 1e6:.4g} M",
                    f"{1e3 * step.wall:.1f}",
                    f"{wall:.2f}",
                    f"{1e3 * step.cpu:.1f}",
                    f"{cpu:.2f}",
                    f"{self.batch / step.wall:.3g}",
                    "" if step.mfu is None else f"{step.mfu:.0%}",
                    f"{step.peak / 1e9:.3g}",
                )
            )
        table = [f"{row[0]:<24}" + "".join(f"{cell:>11}" for cell in row[1:]) for row in rows]
        limits = f"{self.flops / 1e12:.4g} TFLOP a step; ceiling {self.ceiling / 1e12:.4g} TFLOP/s"
        return "\n".join([head, *table, limits])


def bench_train(
    size: str,
    *,
    device: torch.device,
    precision: str = "float32",
    mode: Mode = "full",
    method: Literal["adamw", "adafactor", "adamw8bit"] = "adamw",
    batch: int = 2,
    cameras: int = 2,
    repeats: int = 3,
    recompute: int | None = None,
    compile: bool = False,
    theirs: bool = True,
) -> TrainBench:
    """Measure `repeats` steps of each way in turns, after two of warm-up.

    size: of `SIZES`. mode: everything learns, adapters of rank 16, or the expert alone. method: our
    optimiser's (`OptimConfig`). recompute: None measures a step that keeps its activations and one
    that computes those of every block again; else that one alone. compile: ours block by block,
    LeRobot's as its `compile_model` does. theirs: LeRobot's too, only in mode "full".
    Raises ValueError for a mode that LeRobot is not compared in, ImportError without LeRobot.
    """
    if theirs and mode != "full":
        raise ValueError(f"LeRobot is compared where all is trained, not in mode {mode!r}")
    torch.manual_seed(0)
    sizes, parallel = SIZES[size], ParallelConfig(compile=compile)
    inputs = _inputs(sizes, batch, cameras, device)
    ways, parameters, state, flops = _ours(
        sizes, inputs, device, precision, mode, method, parallel, recompute
    )
    kept = dict.fromkeys(ways, (parameters, state))  # numbers, and bytes of weights and moments
    for theirs_in in dict.fromkeys((precision, "float32")) if theirs else ():
        more, *numbers = _theirs(
            sizes,
            inputs[0],
            cameras,
            theirs_in,
            device,
            compile=compile,
            again=theirs_in == precision,
        )
        ways |= more
        kept |= dict.fromkeys(more, tuple(numbers))
    side, dtype = (256, torch.float32) if size == "toy" else (4096, _dtype(precision))
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    peaks, ceiling = {}, []
    for name, step in ways.items():
        step()
        _, own = kept[name]
        peaks[name] = allocated_at_most(step, device) + (0 if device.type == "cuda" else own)
    for _ in tqdm(range(repeats), "train", disable=None):
        for name, step in ways.items():
            ceilings.synchronise(device)
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            ceilings.synchronise(device)
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
        ceiling.append(ceilings.matmul_flops(side, dtype, device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    known = peak_tflops(name)
    peak = median(ceiling) if known is None else 1e12 * known
    return TrainBench(
        size,
        mode,
        precision,
        method,
        batch,
        cameras,
        flops,
        peak,
        tuple(
            Step(
                way,
                median(walls[way]),
                median(cpus[way]),
                peaks[way],
                kept[way][0],
                None if way.startswith("LeRobot") else flops / (median(walls[way]) * peak),
            )
            for way in ways
        ),
        name,
        torch.get_num_threads(),
    )


Ways = dict[str, Callable[[], object]]


def _ours(
    sizes: Pi0Config,
    inputs: tuple[Batch, Tensor, Tensor],
    device: torch.device,
    precision: str,
    mode: Mode,
    method: Literal["adamw", "adafactor", "adamw8bit"],
    parallel: ParallelConfig,
    recompute: int | None,
) -> tuple[Ways, int, int, float]:
    """The steps, the number of parameters, bytes of weights and moments, FLOPs of a step."""
    with torch.device(device):
        model = Pi0(sizes).train()
    if mode == "expert":
        freeze(model, ("backbone",))
    if mode == "lora":
        add_lora(model, LoRAConfig())
    microbatches = [Microbatch(inputs, inputs[0].size)]
    freeze(model, model.unreached)
    flops = Utilisation(model, peak=1.0).work(microbatches)
    optimiser = make_optimiser(model, OptimConfig(method=method))
    kinds = (None, 1) if recompute is None else (recompute,)
    ways: Ways = {}
    for every in kinds:
        # a copy shares the weights and has forward passes of its own
        kind = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        parallelise(kind, replace(parallel, recompute=every), ALONE, device, precision)

        def step(kind: Pi0 = kind) -> None:
            update(
                kind,
                optimiser,
                microbatches,
                step=0,
                device=device,
                precision=precision,
                clip=1.0,
            ).outcome()
            optimiser.zero_grad()

        ways["vla" if every is None else f"vla, recompute {every}"] = step
    moments = [x for kept in optimiser.state.values() for x in kept.values()]
    state = sum(x.nbytes for x in (*model.parameters(), *moments))
    return ways, sum(p.numel() for p in model.parameters()), state, flops


def _theirs(
    sizes: Pi0Config,
    batch: Batch,
    cameras: int,
    precision: str,
    device: torch.device,
    *,
    compile: bool,
    again: bool,
) -> tuple[Ways, int, int]:
    """As `_ours`, but for FLOPs. again: a step that computes activations again, too."""
    policy = their_policy(sizes, cameras, precision, device, compile=compile)
    parameters = list(policy.parameters())
    config = policy.config
    optimiser = torch.optim.AdamW(
        parameters,
        lr=config.optimizer_lr,
        betas=config.optimizer_betas,
        eps=config.optimizer_eps,
        weight_decay=config.optimizer_weight_decay,
    )
    given = their_batch(batch)

    def step(recompute: bool) -> None:
        change = policy.model.gradient_checkpointing_enable
        (change if recompute else policy.model.gradient_checkpointing_disable)()
        loss, _ = policy.forward(given)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.optimizer_grad_clip_norm)
        optimiser.step()
        optimiser.zero_grad()

    step(False)  # makes the moments
    moments = [x for kept in optimiser.state.values() for x in kept.values()]
    state = sum(x.nbytes for x in (*parameters, *moments))
    ways: Ways = {f"LeRobot, {precision}": lambda: step(False)}
    if again:
        ways["LeRobot, checkpointing"] = lambda: step(True)
    return ways, sum(p.numel() for p in parameters), state


def _inputs(
    sizes: Pi0Config, batch: int, cameras: int, device: torch.device
) -> tuple[Batch, Tensor, Tensor]:
    """Random pictures, a prompt without padding, a noise and a time for each sample."""
    generator = torch.Generator().manual_seed(0)
    expert, side = sizes.expert, sizes.backbone.vision.resolution
    shape = (batch, expert.horizon, expert.action_dim)
    seen = Batch(
        images=torch.randint(
            0, 256, (batch, cameras, 3, side, side), generator=generator, dtype=torch.uint8
        ),
        image_valid=torch.ones(batch, cameras, dtype=torch.bool),
        tokens=torch.randint(4, sizes.backbone.vocab, (batch, TEXT), generator=generator),
        token_valid=torch.ones(batch, TEXT, dtype=torch.bool),
        state=torch.randn(batch, expert.state_dim, generator=generator),
        actions=torch.randn(shape, generator=generator),
        action_valid=torch.ones(batch, expert.horizon, dtype=torch.bool),
        action_dim_valid=torch.ones(batch, expert.action_dim, dtype=torch.bool),
    ).to(device)
    noise = torch.randn(batch, 1, *shape[1:], generator=generator).to(device)
    return seen, noise, torch.rand(batch, 1, generator=generator).to(device)


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
