"""A run's model and batches as shapes: what a plan runs instead of the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from backbone.paligemma import PaliGemma, PaliGemmaConfig, TextBatch
from vla.batch import Batch
from vla.config import RunConfig, TrainConfig
from vla.model import ModelConfig, build
from vla.policy_config import PROMPT_LENGTHS
from vla.training.stage_job import StageConfig
from vla.training.text_job import TextConfig

__all__ = ["Sketch", "sketch"]

CAMERAS = 3  # openpi's, where neither config nor dataset tells
TEXT = 64  # tokens of a prompt with its answer


@dataclass(frozen=True)
class Sketch:
    """model: builds it. inputs: what `model(*inputs)` takes for so many samples; zeros. cameras,
    text, resolution: pictures, text tokens, and a picture's side in pixels, of a sample."""

    model: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    cameras: int
    text: int
    resolution: int


def sketch(config: RunConfig, cameras: int | None = None, text: int | None = None) -> Sketch:
    """What `config` trains; opens no more of the data than its info.json, if that is there.

    cameras, text: pictures and text tokens of a sample, where config or dataset tell otherwise or
    nothing.
    Raises ValueError for a run that is neither of policies nor of a PaliGemma.
    """
    if isinstance(config, TrainConfig):
        sizes = config.model
        cameras = cameras or _cameras(config)
        text = text or config.data.prompt_length or PROMPT_LENGTHS[type(sizes)]
        return Sketch(
            lambda: build(sizes),
            lambda batch: _policy_inputs(sizes, batch, cameras, text, config.draws),
            cameras,
            text,
            sizes.backbone.resolution,
        )
    if isinstance(config, TextConfig | StageConfig):
        paligemma = config.model
        cameras = cameras or (len(config.cameras) if isinstance(config, TextConfig) else 1)
        text = text or (config.text_length if isinstance(config, StageConfig) else None) or TEXT
        return Sketch(
            lambda: PaliGemma(paligemma),
            lambda batch: (_text_batch(paligemma, batch, cameras, text),),
            cameras,
            text,
            paligemma.resolution,
        )
    raise ValueError(
        f"a {type(config).__name__} can't be planned; expected the TrainConfig of a policy, or the "
        "TextConfig, VLMConfig or StageConfig of a PaliGemma"
    )


def _cameras(config: TrainConfig) -> int:
    if config.data.cameras is not None:
        return len(config.data.cameras)
    info = config.data.root / "meta/info.json"
    if not info.is_file():
        return CAMERAS
    features = json.loads(info.read_text(encoding="utf-8"))["features"]
    return sum(name.startswith("observation.images.") for name in features)


def _policy_inputs(
    sizes: ModelConfig, batch: int, cameras: int, text: int, draws: int
) -> tuple[Any, ...]:
    expert, size = sizes.expert, sizes.backbone.vision.resolution
    observed = Batch(
        images=torch.zeros(batch, cameras, 3, size, size, dtype=torch.uint8),
        image_valid=torch.ones(batch, cameras, dtype=torch.bool),
        tokens=torch.zeros(batch, text, dtype=torch.int64),
        token_valid=torch.ones(batch, text, dtype=torch.bool),
        state=torch.zeros(batch, expert.state_dim),
        actions=torch.zeros(batch, expert.horizon, expert.action_dim),
        action_valid=torch.ones(batch, expert.horizon, dtype=torch.bool),
        action_dim_valid=torch.ones(batch, expert.action_dim, dtype=torch.bool),
    )
    noise = torch.zeros(batch, draws, expert.horizon, expert.action_dim)
    return observed, noise, torch.zeros(batch, draws)


def _text_batch(sizes: PaliGemmaConfig, batch: int, cameras: int, text: int) -> TextBatch:
    size = sizes.vision.resolution
    return TextBatch(
        images=torch.zeros(batch, cameras, 3, size, size, dtype=torch.uint8),
        image_valid=torch.ones(batch, cameras, dtype=torch.bool),
        tokens=torch.zeros(batch, text, dtype=torch.int64),
        token_valid=torch.ones(batch, text, dtype=torch.bool),
        suffix=torch.ones(batch, text, dtype=torch.bool),
    )
