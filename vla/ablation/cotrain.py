"""A policy alone beside a policy that learns from text too, at equal numbers of action samples."""

from __future__ import annotations

import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from backbone.pretrained import read_config
from backbone.vlm import VLM
from vla.config import DataConfig, OptimConfig, TrainConfig
from vla.data.examples import TabletopData
from vla.data.image_text.formats import Answer
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import MixtureData, Part
from vla.evaluation.evaluate import evaluate
from vla.pi0 import PI0_SMALL, Pi0
from vla.policy import Policy
from vla.training.cotrain_job import CoTrainConfig

__all__ = ["policies", "policy_score"]

ENV = "Tabletop-easy-v0"
UNSEEN = 1_000_000  # first seed of scenes that are rolled out
QUESTIONS = 2_000_000  # added to the seed, of questions
BATCH = 16
REPLAN = 5


def policies(vlm: Path, demonstrations: Path, text: Path, steps: int) -> dict[str, TrainConfig]:
    """The variants, by name. vlm: a PaliGemma folder, that all start from. demonstrations: of
    `ENV`, with pictures of its size. text: what `vla collect-vlm` wrote, whose questions are
    asked."""
    alone = TrainConfig(
        output_dir=Path(),
        model=replace(PI0_SMALL, backbone=read_config(vlm)),
        data=DataConfig(demonstrations, allow_short_episodes=True, prompt_length=24),
        init=vlm,
        optim=OptimConfig(lr=1e-3, warmup=min(100, steps // 4), end_lr=1e-5, weight_decay=1e-4),
        steps=steps,
        batch_size=32,
        ema_ramp=True,
        log_every=25,
        eval_every=max(1, steps // 8),
        eval_batches=4,
        save_every=max(1, steps // 4),
        keep=1,
        tensorboard=False,
    )
    questions = Part("questions", Jsonl(text / "questions.jsonl"), Answer())
    shared: dict[str, Any] = {f.name: getattr(alone, f.name) for f in fields(alone)}
    both = CoTrainConfig(**shared, text=MixtureData((questions,)), text_batch=16, text_length=32)
    return {
        "policy alone": alone,
        "policy and questions": both,
        "policy and questions, insulated": replace(both, insulated=True),
        "policy alone, backbone frozen": replace(alone, freeze=("backbone",)),
    }


def policy_score(config: TrainConfig, folder: Path, count: int) -> dict[str, float]:
    """Of the policy in `folder`, on scenes never seen: the share of `count` rollouts that succeed,
    and of `count` questions that its backbone answers right."""
    policy = Policy.from_pretrained(folder)
    assert isinstance(policy.model, Pi0)
    size = policy.model.backbone.config.resolution
    rollouts = evaluate(
        policy,
        ENV,
        range(UNSEEN, UNSEEN + count),
        replan_every=REPLAN,
        env_kwargs={"image_size": size},
    )
    vlm = VLM(policy.model.backbone, policy.processor.tokenizer)
    scenes = TabletopData((("question", 1.0),), easy=1.0)
    asked = scenes.training(vlm.model.config, config.seed + QUESTIONS)
    examples = [asked[i] for i in range(count)]
    said: list[str] = []
    for at in range(0, count, BATCH):
        some = examples[at : at + BATCH]
        said += vlm.generate([list(e.images) for e in some], [e.prompt for e in some])
    right = [text == e.answer for text, e in zip(said, examples, strict=True)]
    success = [episode.success for episode in rollouts.episodes]
    return {"success": statistics.fmean(success), "questions right": statistics.fmean(right)}
