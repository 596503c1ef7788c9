"""Figures of a report, made from what a run left behind and from its policy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.types import IMAGES, STATE, TASK, Episode, Observation
from vla.data.demonstrations import Demonstrations
from vla.evaluation.attention import attention_maps
from vla.evaluation.evaluate import write_video
from vla.evaluation.report import Attention, Chunk, Curves, Video, smoothed
from vla.evaluation.svg import Series
from vla.policy import Policy

Item = Mapping[str, Any]  # of `Demonstrations`


def read_metrics(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Every value of a run's metrics.jsonl as (steps, values), by name."""
    metrics: dict[str, tuple[list[int], list[float]]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            steps, series = metrics.setdefault(name, ([], []))
            steps.append(step)
            series.append(value)
    return metrics


def loss_curves(run: Path) -> Curves:
    """Training loss, raw and smoothed, and the validation loss, where there is one."""
    metrics = read_metrics(run)
    series = smoothed("training", *metrics["loss"])
    note = "Mean squared error of the predicted velocity."
    if len(series) > 1:
        note += " The faint line is each report, the firm one their running mean."
    if "validation_loss" in metrics:
        series += (Series("held-out episodes", *metrics["validation_loss"], colour=2, points=True),)
    return Curves(series, "Flow-matching loss", note, "loss")


def observation(item: Item) -> Observation:
    """What a policy would have seen at an item of `Demonstrations`."""
    images = {IMAGES + camera: picture for camera, picture in item["images"].items()}
    return {**images, STATE: item["state"], TASK: item["task"]}


def chunk_accuracy(policy: Policy, items: Sequence[Item], tolerance: float) -> float:
    """Share of the expert's actions that the policy's chunks meet, in [0, 1]: every dimension is
    within `tolerance` (robot units) of the expert's. Steps past an episode's end don't count.
    """
    gaps = [np.abs(c.predicted - c.expert)[c.valid].max(axis=1) for c in chunks(policy, items)]
    return float((np.concatenate(gaps) <= tolerance).mean())


def chunks(policy: Policy, items: Sequence[Item]) -> tuple[Chunk, ...]:
    """The policy's chunk beside the expert's, for each of `items`, from its first noise."""
    policy.reset()
    predicted = policy.act_batch([observation(item) for item in items])
    return tuple(
        Chunk(chunk, item["actions"], item["action_valid"], item["task"])
        for chunk, item in zip(predicted, items, strict=True)
    )


def attention(policy: Policy, items: Sequence[Item]) -> tuple[Attention, ...]:
    """Where the policy's action tokens look at each of `items`, over all layers of the expert."""
    batch = policy.processor.observe([observation(item) for item in items])
    expert = policy.config.model.expert
    generator = torch.Generator().manual_seed(policy.seed)
    noise = torch.randn(len(items), expert.horizon, expert.action_dim, generator=generator)
    device = next(policy.model.parameters()).device
    maps = attention_maps(policy.model, batch.to(device), noise.to(device), policy.config.steps)
    images, text = maps.images.cpu().numpy(), maps.text.sum(1).tolist()
    cameras = policy.config.cameras
    return tuple(
        Attention(
            {camera: item["images"][camera] for camera in cameras},
            dict(zip(cameras, images[i], strict=True)),
            text[i],
            item["task"],
        )
        for i, item in enumerate(items)
    )


def film(episode: Episode, path: Path, title: str) -> Video:
    """Write a recorded episode to `path` and describe it."""
    size = write_video(episode, path)
    return Video(path, title, f"“{episode.task}”", episode.success, size)


def spread(demonstrations: Demonstrations, count: int, part: float = 0.3) -> list[Item]:
    """`count` items from as many episodes (fewer where there are fewer), spread over all of them,
    each from about `part` of the way through its episode.
    """
    lengths = [demonstrations.dataset.lengths[e] for e in demonstrations.episodes]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    chosen = np.unique(np.linspace(0, len(lengths) - 1, count).round().astype(int))
    return [demonstrations[int(starts[i] + part * lengths[i])] for i in chosen]
