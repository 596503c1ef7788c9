"""A policy in a folder: observation in, action chunk out.

model.safetensors   config.json   norm_stats.json   tokenizer.model
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbone.tokenizer import Tokenizer
from backbone.weights import load_weights, save_weights
from vla.data.stats import NormStats
from vla.pi0 import Pi0
from vla.policy_config import PolicyConfig
from vla.processor import Processor

WEIGHTS, CONFIG, STATS = "model.safetensors", "config.json", "norm_stats.json"


class Policy:
    """π0 with all that it needs to act: cameras in order, statistics, vocabulary.

    seed: of the noise that chunks are drawn from; `reset` starts it again, so that a rollout can be
    repeated exactly.
    """

    def __init__(self, model: Pi0, processor: Processor, seed: int = 0):
        if model.config != processor.config.model:
            raise ValueError("the model is not the one that the processor's config describes")
        self.model, self.processor, self.seed = model.eval(), processor, seed
        self.reset()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", seed: int = 0
    ) -> Policy:
        """Read a folder that `save_pretrained` or training wrote.

        Raises FileNotFoundError if the folder or one of its files is missing, ValueError if they do
        not belong together.
        """
        folder = Path(folder)
        config = PolicyConfig.load(folder / CONFIG)
        processor = Processor(
            config, NormStats.load(folder / STATS), Tokenizer.from_pretrained(folder)
        )
        model = Pi0(config.model)
        load_weights(model, folder / WEIGHTS)
        return cls(model.to(device), processor, seed)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all of the policy into `folder`, which is made if needed; config.json comes last,
        so a folder that has one is complete."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, folder / WEIGHTS)
        self.processor.tokenizer.save(folder)
        self.processor.stats.save(folder / STATS)
        self.config.save(folder / CONFIG)

    @property
    def config(self) -> PolicyConfig:
        return self.processor.config

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""
        return self.config.horizon

    def act(self, observation: Mapping[str, Any], noise: np.ndarray | None = None) -> np.ndarray:
        """The actions to take from here: float32 [horizon, action_dim], robot units.

        observation: as in `Processor.observe`. noise: float32 [horizon, A], A the model's own
        action width; drawn when not given. Raises ValueError for an observation of another kind.
        """
        return self.act_batch([observation], None if noise is None else noise[None])[0]

    def act_batch(
        self, observations: Sequence[Mapping[str, Any]], noise: np.ndarray | None = None
    ) -> np.ndarray:
        """One chunk for each of N observations: float32 [N, horizon, action_dim], robot units.

        noise: float32 [N, horizon, A]. Raises ValueError as `act` does.
        """
        batch = self.processor.observe(observations)
        expert = self.model.config.expert
        shape = (len(observations), expert.horizon, expert.action_dim)
        if noise is None:
            drawn = torch.randn(shape, generator=self._generator)
        elif noise.shape == shape:
            drawn = torch.from_numpy(np.asarray(noise, np.float32))
        else:
            raise ValueError(f"noise has shape {list(noise.shape)}, expected {list(shape)}")
        device = next(self.model.parameters()).device
        chunk = self.model.sample_actions(
            batch.to(device), noise=drawn.to(device), steps=self.config.steps
        )
        return self.processor.actions(chunk)

    def reset(self) -> None:
        """Start the noise again from the seed."""
        self._generator = torch.Generator().manual_seed(self.seed)
