"""The whole path in one command: demonstrations → training → rollouts → report."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backbone.pretrained import read_config
from vla.assets import PALIGEMMA_TABLETOP
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.data.collect import collect
from vla.data.dataset import open_dataset
from vla.data.demonstrations import Demonstrations, split
from vla.demo_curve import drawn, progress, steps_to
from vla.demo_report import FILMED, TARGETS, Outcome, demo_report, summary
from vla.evaluation import figures
from vla.evaluation.evaluate import Evaluation, evaluate
from vla.evaluation.report import write_report
from vla.model import ModelConfig, build
from vla.pi0 import PI0_SMALL
from vla.pi05 import PI05_SMALL
from vla.policy import Policy
from vla.training import checkpoint
from vla.training.loop import train
from vla.training.policy_job import init_weights, policy_start
from vla.training.start import begin

ENV = "Tabletop-easy-v0"
# Sizes, and tokens for a prompt: the world's longest instruction takes 15, with the state 44.
POLICIES: dict[str, tuple[ModelConfig, int]] = {"pi0": (PI0_SMALL, 24), "pi05": (PI05_SMALL, 48)}
NAMES = {"pi0": "π0", "pi05": "π0.5"}
RESULT = "result.json"  # also what marks a folder as a demo's output
# First seeds of scenes: demonstrations count up from the demo's seed, which stays far below.
UNSEEN, CURVE, LARGEST_SEED = 1_000_000, 2_000_000, 900_000


@dataclass(frozen=True)
class Plan:
    """How much of everything a demo does."""

    episodes: int = 800
    steps: int = 2000
    batch_size: int = 32
    draws: int = 4
    warmup: int = 100
    lr: float = 1e-3
    rollouts: int = 100  # per setting: trained, untrained, swapped
    curve: int = 400  # steps between the checkpoints that are rolled out for the curve of success
    curve_rollouts: int = 20
    replan_every: int = 5
    num_envs: int = 25
    seed: int = 0
    policy: str = "pi0"  # or "pi05"
    init: Path | None = PALIGEMMA_TABLETOP  # None: random weights

    @property
    def model(self) -> ModelConfig:
        """The small policy with the backbone that it starts from, and an expert that reads it."""
        model, _ = POLICIES[self.policy]
        if self.init is None:
            return model
        backbone = read_config(self.init)
        expert = model.expert.reading(backbone.language)
        return replace(model, backbone=backbone, expert=expert)

    @property
    def rollout_options(self) -> dict[str, Any]:
        """For `evaluate`."""
        return {
            "num_envs": self.num_envs,
            "replan_every": self.replan_every,
            "env_kwargs": env_kwargs(self.model),
        }


FULL = Plan()
QUICK = Plan(episodes=24, steps=60, warmup=10, rollouts=8, curve=30, curve_rollouts=4, num_envs=8)


def run_demo(
    output_dir: Path,
    *,
    quick: bool = False,
    episodes: int | None = None,
    steps: int | None = None,
    curve: int | None = None,
    curve_rollouts: int | None = None,
    seed: int = 0,
    policy: str = "pi0",
    init: Path | None = PALIGEMMA_TABLETOP,
) -> int:
    """Do all stages and leave result.json, report.html, policy/, dataset/, run/ and videos/ in
    `output_dir`; what an earlier demo left there is replaced when this one is done.

    quick: few of everything, in under two minutes; returns 1 if the losses didn't fall, else 0.
    episodes, steps: other amounts than the plan's.
    curve: steps between two points of success against steps; curve_rollouts: scenes of each, the
        same for all points and demos. They are in result.json and the report.
    seed: of the first demonstration, of the model and of the order of samples.
    policy: "pi0", or "pi05", whose prompt tells the state.
    init: folder of a PaliGemma of this package that it starts from, of whatever sizes; the expert
        takes its depth and heads; None: random weights.
    Raises ValueError if `output_dir` holds something that no demo made, for a seed whose scenes
    are kept for the rollouts, or for a PaliGemma that can't be loaded, FileNotFoundError for none.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"expected a seed from 0 to {LARGEST_SEED}, got {seed}")
    given = {"episodes": episodes, "steps": steps, "curve": curve, "curve_rollouts": curve_rollouts}
    plan = replace(QUICK if quick else FULL, **{k: v for k, v in given.items() if v is not None})
    plan = replace(plan, seed=seed, policy=policy, init=init)
    if init is not None:  # what can't be loaded is told now, not after the demonstrations
        with torch.device("meta"):
            model = build(plan.model)
        init_weights(model, init)
    with replaced(output_dir) as folder:
        fell = _stages(plan, folder)
    print(f"\nreport: {output_dir / 'report.html'}")
    if quick and not fell:
        print("the losses did not fall: training is broken")
        return 1
    return 0


def _stages(plan: Plan, folder: Path) -> bool:
    """Everything between the command and its last lines; whether the losses fell."""
    start = time.perf_counter()
    _heading(1, f"{plan.episodes} demonstrations of {ENV} by the scripted expert")
    kwargs = env_kwargs(plan.model)
    collect(ENV, plan.episodes, folder / "dataset", seed=plan.seed, env_kwargs=kwargs)

    _heading(2, f"a small {NAMES[plan.policy]} learns from them, {plan.steps} steps")
    config = train_config(plan, folder)
    shutil.copytree(train(config), folder / "policy")
    policy = Policy.from_pretrained(folder / "policy")

    _heading(3, f"rollouts in {plan.rollouts} unseen scenes, three times")
    untrained = untrained_policy(config, policy)
    outcome = roll_out(plan, policy, untrained)

    _heading(4, "report")
    held_out = held_out_demonstrations(config)
    checkpoints = config.output_dir / "checkpoints"
    scenes = range(CURVE, CURVE + plan.curve_rollouts)
    points = tuple(progress(checkpoints, untrained, held_out, ENV, scenes, **plan.rollout_options))
    curves = (figures.loss_curves(config.output_dir), drawn(points))
    _thin_out(checkpoints)
    seconds = time.perf_counter() - start
    reached = steps_to(TARGETS["success"], points)
    curve = {"curve": [asdict(point) for point in points], "steps_to_target": reached}
    result = {**outcome.counts(), **curve, "seconds": round(seconds, 1)}
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    facts = {
        "Demonstrations": f"{plan.episodes} episodes, {sum(held_out.dataset.lengths)} frames",
        "Policy": f"a small {NAMES[plan.policy]}",
        "Training": f"{plan.steps} steps of {plan.batch_size}",
        "Start": _start(plan.init),
        "Seed": str(plan.seed),
    }
    report = demo_report(folder, outcome, policy, held_out, curves, facts, seconds)
    write_report(report, folder / "report.html")
    print(summary(result))
    return losses_fell(config.output_dir)


def _start(init: Path | None) -> str:
    if init is None:
        return "random weights"
    if init == PALIGEMMA_TABLETOP:
        return "a small PaliGemma pretrained on this world"
    return f"the PaliGemma in {init}"


def _thin_out(checkpoints: Path) -> None:
    """Delete all but the newest checkpoint; they have served for the curve of success."""
    for step in checkpoint.steps(checkpoints)[:-1]:
        shutil.rmtree(checkpoints / str(step))


def _heading(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)


@contextmanager
def replaced(final: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `final` when the block ends well; until
    then, and after an error, what an earlier demo left there stays.

    Raises ValueError if `final` holds something that no demo made.
    """
    if (
        final.exists()
        and not (final / RESULT).is_file()
        and (not final.is_dir() or any(final.iterdir()))
    ):
        raise ValueError(
            f"{final} exists and isn't a demo's output (it has no {RESULT}), so it isn't replaced; "
            "delete it or choose another --output-dir"
        )  # fmt: skip
    new, old = final.with_name(f"{final.name}.new"), final.with_name(f"{final.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    if final.exists():
        os.rename(final, old)
    os.rename(new, final)
    shutil.rmtree(old, ignore_errors=True)


# --- training -------------------------------------------------------------------------------------


def train_config(plan: Plan, folder: Path) -> TrainConfig:
    """The run of a demo, in `folder`/run on `folder`/dataset."""
    _, prompt_length = POLICIES[plan.policy]
    return TrainConfig(
        output_dir=folder / "run",
        model=plan.model,
        data=DataConfig(
            root=folder / "dataset", allow_short_episodes=True, prompt_length=prompt_length
        ),
        init=plan.init,
        steps=plan.steps,
        batch_size=plan.batch_size,
        draws=plan.draws,
        ema_ramp=True,
        optim=OptimConfig(lr=plan.lr, warmup=plan.warmup, end_lr=plan.lr / 100, weight_decay=1e-4),
        seed=plan.seed,
        log_every=max(1, plan.steps // 100),
        eval_every=max(1, plan.steps // 10),
        save_every=plan.curve,
        keep=plan.steps // plan.curve + 1,
    )


def env_kwargs(model: ModelConfig) -> dict[str, Any]:
    """Pictures are drawn at the model's own size, as those that its backbone learned from."""
    return {"image_size": model.backbone.resolution}


def untrained_policy(config: TrainConfig, trained: Policy) -> Policy:
    """What `trained` was before its first step: the pretrained backbone, if any, and an expert with
    random weights."""
    with torch.device("meta"):
        model = build(config.model)
    begin(model, policy_start(config, model)(model), torch.device("cpu"))
    return Policy(model, trained.processor)


def held_out_demonstrations(config: TrainConfig) -> Demonstrations:
    """The episodes that training kept apart."""
    total = len(open_dataset(config.data.root).episodes)
    _, held_out = split(total, config.data.held_out, config.seed)
    model = config.model
    return Demonstrations(
        config.data.root,
        model.expert.horizon,
        config.data.cameras,
        model.backbone.resolution,
        held_out,
        allow_short_episodes=True,
        progress=False,
    )


def losses_fell(run: Path) -> bool:
    """Whether the mean training loss of the last quarter of reports is below that of the first."""
    _, losses = figures.read_metrics(run)["loss"]
    quarter = max(1, len(losses) // 4)
    return sum(losses[-quarter:]) < sum(losses[:quarter])


# --- rollouts -------------------------------------------------------------------------------------


def roll_out(plan: Plan, policy: Policy, untrained: Policy) -> Outcome:
    """Evaluate on the same unseen scenes: trained, untrained, and with swapped instructions."""
    seeds = range(UNSEEN, UNSEEN + plan.rollouts)

    def run(name: str, policy: Policy, options: dict | None = None) -> Evaluation:
        print(name, flush=True)
        return evaluate(
            policy,
            ENV,
            seeds,
            options=options,
            record=FILMED,
            progress=True,
            **plan.rollout_options,
        )

    return Outcome(
        trained=run("trained", policy),
        untrained=run("untrained", untrained),
        swapped=run("trained, with swapped instructions", policy, {"swap": True}),
    )
