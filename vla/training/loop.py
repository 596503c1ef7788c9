"""Training, start to end: batches → model → optimiser → steps → checkpoints → result."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import torch

from backbone.lora import merged, save_adapters
from vla.config import RunConfig, as_dict, defaults, save_config
from vla.training import checkpoint
from vla.training.build import build
from vla.training.ema import Ema
from vla.training.faults import NotFinite
from vla.training.interrupt import Interrupt
from vla.training.log import Log, Window
from vla.training.optimiser import make_optimiser, set_learning_rate
from vla.training.parallel import ParallelConfig
from vla.training.prefetch import Prefetch
from vla.training.replay import keep
from vla.training.saver import Saver
from vla.training.shards import whole
from vla.training.spikes import Spikes
from vla.training.state import TrainState
from vla.training.trace import Trace
from vla.training.trackers import Trackers
from vla.training.update import update, validation_loss
from vla.training.utilisation import Utilisation
from vla.training.world import World, joined

__all__ = ["train"]

# Fields that may differ between a checkpoint's run and the one that goes on from it.
FREE_ON_RESUME = {
    "output_dir",
    "steps",
    "device",
    "workers",
    "worker_timeout",
    "keep",
    "keep_every",
    "tensorboard",
    "trackers",
    "project",
    "trace",
    "peak_tflops",
    "skip_not_finite",
} | {
    *(f"{what}_every" for what in ("log", "eval", "save")),
    *(f"parallel.{field.name}" for field in fields(ParallelConfig)),
}
GRACE = 25.0  # seconds from SIGTERM to the end; schedulers and torchrun kill after 30
ADAPTER = "adapter"  # folder of a LoRA run's adapters, beside the result that holds them merged


def train(config: RunConfig, *, resume: bool = False) -> Path:
    """Run what `config` describes and return the folder of the result.

    Writes into `config.output_dir`: config.json, metrics.jsonl, tensorboard/, checkpoints/<step>/
    and the result, e.g. policy/ (averaged weights where `config.ema` is set; every checkpoint holds
    its own; with `config.lora`, adapters stand in adapter/ and are merged into the result). With
    `resume` it goes on from the newest whole checkpoint, if there is one, and makes
    the updates that a run without a break would have made; without, a folder that has checkpoints
    is refused.

    Started by torchrun, the processes share the model and each batch (`ParallelConfig`); updates
    are the same for any number of them, and a checkpoint of one number goes on with another.

    Checkpoints are written beside training, from copies. SIGTERM and Ctrl-C wait for the one that
    is being written, save another after the running update if 25 seconds are enough for it, then
    stop the process.
    Raises NotFinite if the loss or a gradient is not finite, in all processes and before the
    update, after `config.skip_not_finite` of such steps were left out; the batch is kept, and a
    checkpoint of the weights, for `vla replay`. OSError if a checkpoint cannot be written, or is
    not as it was written at the end; LostPeer if another process is gone, LostWorker if
    one that prepares batches is.
    """
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with joined(device, config.parallel.timeout) as (world, device):
        return _train(config, resume, world, device)


def _train(config: RunConfig, resume: bool, world: World, device: torch.device) -> Path:
    folder = Path(config.output_dir)
    checkpoints = folder / "checkpoints"
    if not resume and (steps := checkpoint.steps(checkpoints)):
        raise ValueError(
            f"{folder} already holds a run with a checkpoint of step {steps[-1]}; "
            "add --resume to go on, or choose another output_dir"
        )
    torch.manual_seed(config.seed)
    job = config.job(world)
    model, empty = build(job, config, world, device)
    usage = Utilisation.on(device, empty, config.peak_tflops)
    optimiser = make_optimiser(model, config.optim)
    ema = None if config.ema is None else Ema(model, config.ema, ramp=config.ema_ramp)
    state = TrainState(model, optimiser, ema)
    start, window, skipped = 0, Window(), 0
    if resume:
        start, window, skipped = _resume(state, config, checkpoints, world)
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder / "config.json")

    def result(inside: Path) -> None:
        averages = {} if ema is None else whole(inside, "ema")
        empty.load_state_dict(whole(inside, "model") | averages, assign=True)
        (inside / job.result).mkdir()
        job.save(empty if config.lora is None else merged(empty), inside / job.result)
        if config.lora is not None:
            save_adapters(empty, inside / ADAPTER)

    def save(step: int) -> None:
        told = {"step": step, "window": dict(window.sums), "skipped": skipped}
        told["config"] = as_dict(config)
        saver.save(step, state.tensors(), told, result)

    trackers = None
    if world.first and config.trackers:
        trackers = Trackers(config.trackers, folder, config.project, as_dict(config))
    with (
        Interrupt() as interrupt,
        Log(
            folder if world.first else None,
            start=start,
            steps=config.steps,
            tensorboard=config.tensorboard,
            trackers=trackers,
        ) as log,
        Trace(config.trace, folder, world.rank) as trace,
        Saver(checkpoints, config.keep, config.keep_every, world) as saver,
        Prefetch(
            job.batch,
            job.samples,
            range(start, config.steps),
            config.workers,
            config.worker_timeout,
        ) as batches,
    ):
        if job.unreached:
            log.say(f"left out of training, no loss reaches them: {', '.join(job.unreached)}")
        spikes = Spikes()
        began = time.perf_counter()
        for step, microbatches in batches:
            waiting = time.perf_counter() - began
            if (path := trace.at(step)) is not None:
                log.say(f"a trace is in {path}")
            rate = set_learning_rate(optimiser, config.optim, step, config.steps)
            done, kinds = step + 1, {}
            try:
                loss, norm = update(
                    model,
                    optimiser,
                    microbatches,
                    step=step,
                    device=device,
                    precision=config.precision,
                    clip=config.optim.clip,
                    world=world,
                    kinds=kinds,
                    reduce_once=config.parallel.reduce_once,
                )
            except NotFinite as error:
                path = keep(microbatches, folder / f"not_finite/{step}.{world.rank}.safetensors")
                if skipped >= config.skip_not_finite:
                    try:  # the weights that it came from
                        save(step)
                        saver.wait()
                    except OSError as unsaved:
                        log.say(str(unsaved))
                    raise NotFinite(
                        f"{error}. Its batch is kept in {path}; see it again "
                        f"with: vla replay {path}"
                    ) from error
                skipped += 1
                log.say(f"skipped step {step}, {skipped} of {config.skip_not_finite}: {error}")
            else:
                if ema is not None:
                    ema.update(step)
                seconds = time.perf_counter() - began
                counts = Counter(tokens=0)
                for microbatch in microbatches:
                    counts.update({"tokens": microbatch.tokens, **microbatch.counts})
                counts = world.total(counts)
                tokens = counts.pop("tokens")
                window.add(
                    {"loss": loss, **kinds, "grad_norm": norm, **counts},
                    config.batch_size,
                    seconds,
                    tokens=int(tokens),
                    waiting=waiting,
                    flops=usage.work(microbatches),
                )
                if spikes.add(loss):
                    log.say(f"the loss of step {step} stands out: {loss:.4g}, norm {norm:.4g}")

            values = {}
            if (done % config.log_every == 0 or done == config.steps) and window.sums:
                values |= {**window.means(usage.peak), "lr": rate}
                window = Window()
            if job.held_out and (done % config.eval_every == 0 or done == config.steps):
                with _averaged(ema):
                    values["validation_loss"] = validation_loss(
                        model, job.held_out(), device, config.precision, world
                    )
            log.advance()
            if values:
                log.report(done, values)
            flags = world.gather([interrupt.asked, saver.failed])
            stop, failed = map(any, zip(*flags, strict=True))
            if failed:
                saver.wait()  # raises
            if stop and done < config.steps:
                path = _last(saver, save, done, interrupt, world)
                log.say(f"stopped after step {done}, saved {path}; add --resume to go on")
                interrupt.finish()
            if done % config.save_every == 0 or done == config.steps:
                save(done)
            began = time.perf_counter()
        saver.wait()
        path = checkpoints / str(config.steps)
        if world.first:
            if (reason := checkpoint.damage(path)) is not None:
                raise OSError(f"the last checkpoint, {path}: {reason}; resume to write it again")
            for name in (job.result, *([ADAPTER] if config.lora else [])):
                _publish(path / name, folder / name)
        world.wait()
        return folder / job.result


def _last(
    saver: Saver, save: Callable[[int], None], done: int, interrupt: Interrupt, world: World
) -> Path | None:
    """Save a last checkpoint if what is left of the grace is enough for it, to judge by the one
    before; returns the newest."""
    saver.hurry()
    path = saver.wait()
    if world.from_first(interrupt.waited + saver.seconds < GRACE):
        save(done)
        path = saver.wait()
    return path


def _averaged(ema: Ema | None):
    return nullcontext() if ema is None else ema.applied()


def _resume(
    state: TrainState, config: RunConfig, checkpoints: Path, world: World
) -> tuple[int, Window, int]:
    """Fill `state` from the newest whole checkpoint; returns the steps made, the means since the
    last report, and how many steps were left out."""
    step = -1
    if world.first:
        for reason in checkpoint.set_aside_damaged(checkpoints):
            print(reason, flush=True)
        newest = checkpoint.newest(checkpoints)
        step = -1 if newest is None else int(newest.name)
    if (step := world.from_first(step)) < 0:
        return 0, Window(), 0
    path = checkpoints / str(step)
    saved = checkpoint.read_state(path)
    _check_same(saved["config"], config, path)
    if saved["step"] > config.steps:
        raise ValueError(
            f"{path} is past the {config.steps} steps of this run; raise steps, or train anew "
            "in another output_dir"
        )
    state.read(path, world)
    return saved["step"], Window(saved["window"]), saved["skipped"]


def _check_same(saved: dict, config: RunConfig, path: Path) -> None:
    # a field that the run's version of this package didn't have yet was at its default
    before, after = defaults(config) | _flat(saved), _flat(as_dict(config))
    changed = [
        f"{name}: {before.get(name, 'absent')} then, {after.get(name, 'absent')} now"
        for name in sorted(before.keys() | after.keys())
        if name not in FREE_ON_RESUME and before.get(name) != after.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} was written by a run with another config; {'; '.join(changed)}. "
            "Give the same values to go on, or choose another output_dir"
        )


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _publish(source: Path, target: Path) -> Path:
    """Copy a folder so that `target` is replaced whole."""
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, new)
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)
    return target
