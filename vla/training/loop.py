"""Training, start to end: batches → model → optimiser → steps → checkpoints → result."""

import os
import shutil
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from backbone.lora import merged, save_adapters
from backbone.precision import multiplies_bfloat16
from vla.config import RunConfig, as_dict, save_config
from vla.training import checkpoint
from vla.training.build import build
from vla.training.ema import Ema
from vla.training.faults import NotFinite
from vla.training.interrupt import Interrupt
from vla.training.job import Microbatch
from vla.training.log import Log, Stopwatch, Window
from vla.training.optimiser import make_optimiser, set_learning_rate
from vla.training.prefetch import Prefetch
from vla.training.replay import keep
from vla.training.resume import Progress, resumed
from vla.training.saver import Saver
from vla.training.shards import whole
from vla.training.spikes import Spikes
from vla.training.state import TrainState
from vla.training.trace import Trace
from vla.training.trackers import Trackers
from vla.training.update import Gate, Outcome, Update, update, validation_loss
from vla.training.utilisation import Utilisation
from vla.training.world import World, joined

__all__ = ["train"]

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
    Raises NotFinite if the loss or a gradient is not finite, in all processes and instead of the
    update, after `config.skip_not_finite` of such steps were left out; the batch is kept, and a
    checkpoint of the weights, for `vla replay`. OSError if a checkpoint cannot be written, or is
    not as it was written at the end; LostPeer if another process is gone, LostWorker if
    one that prepares batches is.
    """
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with joined(device, config.parallel.timeout) as (world, device):
        return _Run(config, resume, world, device).go()


class _Run:
    """What `train` does, in order; `go` does it all.

    The host asks for an update before it has heard of the one before, so that a card is never
    without work; `settle` hears, and reports, saves and stops only happen where all is settled.
    """

    def __init__(self, config: RunConfig, resume: bool, world: World, device: torch.device):
        self.config, self.world, self.device = config, world, device
        self.folder = Path(config.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        if not resume and (steps := checkpoint.steps(self.checkpoints)):
            raise ValueError(
                f"{self.folder} already holds a run with a checkpoint of step {steps[-1]}; "
                "add --resume to go on, or choose another output_dir"
            )
        torch.manual_seed(config.seed)
        self.job = config.job(world)
        self.model, self.empty = build(self.job, config, world, device)
        self.usage = Utilisation.on(device, self.empty, config.peak_tflops)
        self.optimiser = make_optimiser(self.model, config.optim)
        self.ema = None
        if config.ema is not None:
            self.ema = Ema(self.model, config.ema, ramp=config.ema_ramp)
        self.state = TrainState(self.model, self.optimiser, self.ema)
        self.progress = Progress()
        if resume:
            self.progress = resumed(self.state, config, self.checkpoints, world)
        self.gate = Gate(device, config.skip_not_finite, self.progress.skipped)
        self.spikes = Spikes()
        self.asked: deque[Update] = deque()
        self.clock = Stopwatch()
        if world.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(config, self.folder / "config.json")

    def go(self) -> Path:
        config, world, start = self.config, self.world, self.progress.step
        told = self.folder if world.first else None
        trackers = None
        if world.first and config.trackers:
            trackers = Trackers(config.trackers, self.folder, config.project, as_dict(config))
        with (
            Interrupt(tells=world.first) as interrupt,
            Log(
                told,
                start=start,
                steps=config.steps,
                tensorboard=config.tensorboard,
                trackers=trackers,
            ) as self.log,
            Trace(config.trace, self.folder, world.rank) as trace,
            Saver(self.checkpoints, config.keep, config.keep_every, world) as self.saver,
            Prefetch(
                self.job.batch,
                self.job.samples,
                range(start, config.steps),
                config.workers,
                config.worker_timeout,
                pin=self.device.type == "cuda",
            ) as batches,
        ):
            if unreached := self.job.unreached:
                self.log.say(f"left out of training, no loss reaches them: {', '.join(unreached)}")
            self.say_precision()
            self.clock.start()
            for step, microbatches in batches:
                self.clock.works()
                if (path := trace.at(step)) is not None:
                    self.log.say(f"a trace is in {path}")
                self.ask(step, microbatches)
                self.settle(leave=1)
                self.log.advance()
                self.after(interrupt)
                self.clock.waits()
            self.saver.wait()
            return self.publish()

    def say_precision(self) -> None:
        """Where a CPU has no products in bfloat16."""
        if multiplies_bfloat16(self.device) or (wanted := self.config.precision) == "float32":
            return
        can_do = f"{self.device.type} here has no fast products in bfloat16"
        if wanted == "auto":
            self.log.say(f"computes in float32: {can_do}")
        else:
            self.log.say(f'{can_do}: precision="auto" computes in float32 and is much faster')

    def ask(self, step: int, microbatches: Sequence[Microbatch]) -> None:
        """For an update, and the average's."""
        config = self.config
        self.rate = set_learning_rate(self.optimiser, config.optim, step, config.steps)
        asked = update(
            self.model,
            self.optimiser,
            microbatches,
            step=step,
            device=self.device,
            precision=config.precision,
            clip=config.optim.clip,
            world=self.world,
            gate=self.gate,
            reduce_once=config.parallel.reduce_once,
        )
        if self.ema is not None:
            self.ema.update(step, asked.shut)
        self.asked.append(asked)
        self.progress.step = step + 1

    def settle(self, leave: int = 0) -> None:
        """Wait for all updates that were asked for but the last `leave`."""
        while len(self.asked) > leave:
            made = self.asked.popleft()
            try:
                outcome = made.outcome()
            except NotFinite as error:
                self.skip(made, error)
            else:
                self.count(made, outcome)

    def count(self, made: Update, outcome: Outcome) -> None:
        """Add an update to the means."""
        seen = Counter(tokens=0)
        for microbatch in made.microbatches:
            seen.update({"tokens": microbatch.tokens, **microbatch.counts})
        seen = self.world.total(seen)
        tokens = seen.pop("tokens")
        seconds, waiting = self.clock.lap()
        self.progress.window.add(
            {"loss": outcome.loss, **outcome.kinds, "grad_norm": outcome.norm, **seen},
            self.config.batch_size,
            seconds,
            tokens=int(tokens),
            waiting=waiting,
            flops=self.usage.work(made.microbatches),
        )
        if self.spikes.add(outcome.loss):
            self.log.say(
                f"the loss of step {made.step} stands out: {outcome.loss:.4g}, "
                f"norm {outcome.norm:.4g}"
            )

    def skip(self, made: Update, error: NotFinite) -> None:
        """Count an update that was not made; stop if it is one too many. No later one was made
        then, so that the weights are those that its loss came from."""
        config, progress, step = self.config, self.progress, made.step
        name = f"not_finite/{step}.{self.world.rank}.safetensors"
        path = keep(made.microbatches, self.folder / name)
        if progress.skipped < config.skip_not_finite:
            progress.skipped += 1
            self.log.say(
                f"skipped step {step}, {progress.skipped} of {config.skip_not_finite}: {error}"
            )
            return
        try:
            self.save(step)
            self.saver.wait()
        except OSError as unsaved:
            self.log.say(str(unsaved))
        raise NotFinite(
            f"{error}. Its batch is kept in {path}; see it again with: vla replay {path}"
        ) from error

    def after(self, interrupt: Interrupt) -> None:
        """What is due between two updates: reports, a last checkpoint on request, checkpoints."""
        config, done = self.config, self.progress.step
        last = done == config.steps
        reports = last or done % config.log_every == 0
        judges = bool(self.job.held_out) and (last or done % config.eval_every == 0)
        saves = last or done % config.save_every == 0
        flags = self.world.gather([interrupt.asked, self.saver.failed])
        stops, failed = map(any, zip(*flags, strict=True))
        if not (reports or judges or saves or stops or failed):
            return
        self.settle()
        self.report(done, reports, judges)
        if failed:
            self.saver.wait()  # raises
        if stops and not last:
            path = self.save_last(interrupt)
            self.log.say(f"stopped after step {done}, saved {path}; add --resume to go on")
            interrupt.finish()
        if saves:
            self.save(done)
        self.clock.start()

    def report(self, done: int, means: bool, judge: bool) -> None:
        config, values = self.config, {}
        if means and self.progress.window.sums:
            values |= {**self.progress.window.means(self.usage.peak), "lr": self.rate}
            self.progress.window = Window()
        if judge and self.job.held_out is not None:
            with nullcontext() if self.ema is None else self.ema.applied():
                values["validation_loss"] = validation_loss(
                    self.model, self.job.held_out(), self.device, config.precision, self.world
                )
        if values:
            self.log.report(done, values)

    def save(self, step: int) -> None:
        """Begin to write a checkpoint."""
        told = {"step": step, "window": dict(self.progress.window.sums)}
        told |= {"skipped": self.progress.skipped, "config": as_dict(self.config)}
        self.saver.save(step, self.state.tensors(), told, self.result)

    def save_last(self, interrupt: Interrupt) -> Path | None:
        """Save once more if what is left of the grace is enough for it, to judge by the save
        before; returns the newest checkpoint."""
        self.saver.hurry()
        path = self.saver.wait()
        if self.world.from_first(interrupt.waited + self.saver.seconds < GRACE):
            self.save(self.progress.step)
            path = self.saver.wait()
        return path

    def result(self, inside: Path) -> None:
        """Write the result of the checkpoint that is in the folder `inside` beside it."""
        averages = {} if self.ema is None else whole(inside, "ema")
        self.empty.load_state_dict(whole(inside, "model") | averages, assign=True)
        (inside / self.job.result).mkdir()
        adapted = self.config.lora is not None
        self.job.save(merged(self.empty) if adapted else self.empty, inside / self.job.result)
        if adapted:
            save_adapters(self.empty, inside / ADAPTER)

    def publish(self) -> Path:
        """Copy the last checkpoint's result to where the run's is looked for."""
        path = self.checkpoints / str(self.config.steps)
        if self.world.first:
            if (reason := checkpoint.damage(path)) is not None:
                raise OSError(f"the last checkpoint, {path}: {reason}; resume to write it again")
            for name in (self.job.result, *([ADAPTER] if self.config.lora else [])):
                _publish(path / name, self.folder / name)
        self.world.wait()
        return self.folder / self.job.result


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
