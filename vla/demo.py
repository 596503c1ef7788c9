"""The whole path in one command: demonstrations → training → rollouts → report."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vla.assets import PALIGEMMA_TABLETOP
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.data.collect import collect
from vla.data.dataset import open_dataset
from vla.data.demonstrations import Demonstrations, split
from vla.demo_report import FILMED, Outcome, demo_report, summary
from vla.evaluation import figures
from vla.evaluation.evaluate import Evaluation, evaluate
from vla.evaluation.report import Curves, write_report
from vla.evaluation.svg import Series
from vla.model import ModelConfig, build
from vla.pi0 import PI0_SMALL
from vla.pi05 import PI05_SMALL
from vla.policy import Policy
from vla.training import checkpoint
from vla.training.loop import train
from vla.training.policy_job import load_init

ENV = "Tabletop-easy-v0"
# Pictures are drawn at the model's own size, as those that its backbone learned from.
ENV_KWARGS = {"image_size": PI0_SMALL.backbone.vision.resolution}
# Sizes, and tokens for a prompt: the world's longest instruction takes 15, with the state 44.
POLICIES: dict[str, tuple[ModelConfig, int]] = {"pi0": (PI0_SMALL, 24), "pi05": (PI05_SMALL, 48)}
NAMES = {"pi0": "π0", "pi05": "π0.5"}
RESULT = "result.json"  # also what marks a folder as a demo's output
# First seeds of scenes: demonstrations count up from the demo's seed, which stays far below.
UNSEEN, CURVE, LARGEST_SEED = 1_000_000, 2_000_000, 900_000
ACTION_TOLERANCE = 0.25  # of an action's range [-1, 1], for the accuracy curve
ITEMS = 200  # about so many held-out observations


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
    curve_points: int = 5  # checkpoints that are rolled out for the curve of success
    curve_rollouts: int = 20
    replan_every: int = 5
    num_envs: int = 25
    seed: int = 0
    policy: str = "pi0"  # or "pi05"


FULL = Plan()
QUICK = Plan(
    episodes=24, steps=60, warmup=10, rollouts=8, curve_points=2, curve_rollouts=4, num_envs=8
)


def run_demo(
    output_dir: Path,
    *,
    quick: bool = False,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    policy: str = "pi0",
) -> int:
    """Do all stages and leave result.json, report.html, policy/, dataset/, run/ and videos/ in
    `output_dir`; what an earlier demo left there is replaced when this one is done.

    quick: few of everything, in under two minutes; returns 1 if the losses didn't fall, else 0.
    episodes, steps: other amounts than the plan's.
    seed: of the first demonstration, of the model and of the order of samples.
    policy: "pi0", or "pi05", whose prompt tells the state.
    Raises ValueError if `output_dir` holds something that no demo made, or for a seed whose scenes
    are kept for the rollouts.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"expected a seed from 0 to {LARGEST_SEED}, got {seed}")
    given = {"episodes": episodes, "steps": steps, "seed": seed, "policy": policy}
    plan = replace(QUICK if quick else FULL, **{k: v for k, v in given.items() if v is not None})
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
    collect(ENV, plan.episodes, folder / "dataset", seed=plan.seed, env_kwargs=ENV_KWARGS)

    _heading(2, f"a small {NAMES[plan.policy]} learns from them, {plan.steps} steps")
    config = train_config(plan, folder)
    shutil.copytree(train(config), folder / "policy")
    policy = Policy.from_pretrained(folder / "policy")

    _heading(3, f"rollouts in {plan.rollouts} unseen scenes, three times")
    untrained = untrained_policy(config, policy)
    outcome = roll_out(plan, policy, untrained)

    _heading(4, "report")
    held_out = held_out_demonstrations(config)
    curves = (figures.loss_curves(config.output_dir), progress(plan, config, untrained, held_out))
    _thin_out(config.output_dir / "checkpoints")
    seconds = time.perf_counter() - start
    result = {**outcome.counts(), "seconds": round(seconds, 1)}
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    facts = {
        "Demonstrations": f"{plan.episodes} episodes, {sum(held_out.dataset.lengths)} frames",
        "Policy": f"a small {NAMES[plan.policy]}",
        "Training": f"{plan.steps} steps of {plan.batch_size}",
        "Start": "a small PaliGemma pretrained on this world",
        "Seed": str(plan.seed),
    }
    report = demo_report(folder, outcome, policy, held_out, curves, facts, seconds)
    write_report(report, folder / "report.html")
    print(summary(result))
    return losses_fell(config.output_dir)


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
    model, prompt_length = POLICIES[plan.policy]
    return TrainConfig(
        output_dir=folder / "run",
        model=model,
        data=DataConfig(
            root=folder / "dataset", allow_short_episodes=True, prompt_length=prompt_length
        ),
        init=PALIGEMMA_TABLETOP,
        steps=plan.steps,
        batch_size=plan.batch_size,
        draws=plan.draws,
        ema_ramp=True,
        optim=OptimConfig(lr=plan.lr, warmup=plan.warmup, end_lr=plan.lr / 100, weight_decay=1e-4),
        seed=plan.seed,
        log_every=max(1, plan.steps // 100),
        eval_every=max(1, plan.steps // 10),
        save_every=max(1, plan.steps // plan.curve_points),
        keep=plan.curve_points + 1,
    )


def untrained_policy(config: TrainConfig, trained: Policy) -> Policy:
    """What `trained` was before its first step: the pretrained backbone, if any, and an expert with
    random weights."""
    torch.manual_seed(config.seed)
    model = build(config.model)
    if config.init is not None:
        load_init(model, config.init)
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
        model.backbone.vision.resolution,
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
            num_envs=plan.num_envs,
            replan_every=plan.replan_every,
            options=options,
            env_kwargs=ENV_KWARGS,
            record=FILMED,
            progress=True,
        )

    return Outcome(
        trained=run("trained", policy),
        untrained=run("untrained", untrained),
        swapped=run("trained, with swapped instructions", policy, {"swap": True}),
    )


def progress(
    plan: Plan, config: TrainConfig, untrained: Policy, held_out: Demonstrations
) -> Curves:
    """Success in scenes of their own and action accuracy, at step 0 and at every checkpoint."""
    items = [held_out[i] for i in range(0, len(held_out), max(1, len(held_out) // ITEMS))]
    folder = config.output_dir / "checkpoints"
    steps, success, accuracy = [0, *checkpoint.steps(folder)], [], []
    for step in steps:
        policy = Policy.from_pretrained(folder / str(step) / "policy") if step else untrained
        accuracy.append(figures.chunk_accuracy(policy, items, ACTION_TOLERANCE))
        scenes = range(CURVE, CURVE + plan.curve_rollouts)
        total = evaluate(
            policy,
            ENV,
            scenes,
            num_envs=plan.num_envs,
            replan_every=plan.replan_every,
            env_kwargs=ENV_KWARGS,
        ).table.total
        success.append(total.rate)
        print(f"step {step}: success {total.k}/{total.n}, actions {accuracy[-1]:.0%}", flush=True)
    series = (
        Series("episodes solved", steps, success, colour=1, points=True),
        Series("actions like the expert's", steps, accuracy, colour=3, dashed=True, points=True),
    )
    note = (
        f"Success in {plan.curve_rollouts} scenes used for nothing else; actions of held-out "
        f"episodes within {ACTION_TOLERANCE} of the expert's in every dimension."
    )
    return Curves(series, "Accuracy", note, "share", percent=True)
