"""A policy in a folder: observation in, action chunk out.

model.safetensors   config.json   norm_stats.json   tokenizer.model
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbone.sources.paligemma_files import TOKENIZERS
from backbone.tokenizer import Tokenizer
from backbone.weights import file_weights, save_weights
from vla.data.stats import NormStats
from vla.model import Model, ModelConfig
from vla.policy_config import PolicyConfig
from vla.processor import Processor
from vla.sources.load import announce, load_model, policy_config
from vla.sources.origin import origin_of, policy_files
from vla.sources.policy_files import PolicyFiles
from vla.sources.statistics import check_spread

WEIGHTS, CONFIG, STATS = "model.safetensors", "config.json", "norm_stats.json"


class Policy:
    """π0 or π0.5 with all that it needs to act: cameras in order, statistics, vocabulary.

    seed: of the noise that chunks are drawn from; `reset` starts it again, so that a rollout can be
    repeated exactly.
    """

    def __init__(self, model: Model, processor: Processor, seed: int = 0):
        if model.config != processor.config.model:
            raise ValueError("the model is not the one that the processor's config describes")
        self.model, self.processor, self.seed = model.eval(), processor, seed
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        seed: int = 0,
        config: PolicyConfig | ModelConfig | None = None,
        tokenizer: Tokenizer | str | Path | None = None,
        stats: NormStats | str | Path | None = None,
        asset: str | None = None,
    ) -> Policy:
        """Read a policy of this package, of LeRobot (π0, π0.5), or of openpi (PyTorch, or a JAX
        checkpoint); the folder's files tell which. Weights from elsewhere keep the numerics that
        they were trained under.

        Args:
            folder: what training or `save_pretrained` wrote; for JAX, the checkpoint or its params.
            dtype: float32, or bfloat16 to compute in it.
            config: sizes where the files cannot tell them (vision heads of unusual widths, the
                horizon of JAX checkpoints), or a whole `PolicyConfig` that goes before what a
                foreign folder says about cameras, prompt and robot.
            tokenizer: where the folder has none, PaliGemma's or a folder or file that holds it.
            stats: instead of the folder's statistics.
            asset: the robot whose statistics to take, where an openpi folder has several.

        Raises FileNotFoundError if the folder or one of its files is missing, ValueError if they do
        not belong together or what they hold cannot be used.
        """
        folder, dtype = Path(folder), _dtype(dtype)
        if stats is not None and not isinstance(stats, NormStats):
            stats = NormStats.load(stats)
        if origin_of(folder) == "vla":
            if config is not None or asset is not None:
                raise ValueError(f"{folder} is whole; config= and asset= are for folders of others")
            return cls._ours(folder, device, dtype, seed, tokenizer, stats)
        files = policy_files(folder, asset)
        return cls._foreign(files, device, dtype, seed, config, tokenizer, stats)

    @classmethod
    def _ours(cls, folder, device, dtype, seed, tokenizer, stats) -> Policy:
        config = PolicyConfig.load(folder / CONFIG)
        stats = stats or NormStats.load(folder / STATS)
        processor = Processor(config, stats, _tokenizer(tokenizer or folder))
        model = load_model(config.model, file_weights(folder / WEIGHTS), device, dtype)
        return cls(model, processor, seed)

    @classmethod
    def _foreign(cls, files: PolicyFiles, device, dtype, seed, config, tokenizer, stats) -> Policy:
        stats = stats or files.stats
        if stats is None:
            raise ValueError(files.stats_fault)
        config = policy_config(files, stats, config)
        check_spread(stats, config.by_quantiles, files.folder)
        processor = Processor(config, stats, _tokenizer(tokenizer or _beside(files)))
        announce(files)
        model = load_model(config.model, files.weights, device, dtype)
        return cls(model, processor, seed)

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
        return self.processor.actions(chunk, self.processor.states(observations))

    def reset(self) -> None:
        """Start the noise again from the seed."""
        self._generator = torch.Generator().manual_seed(self.seed)


def _beside(files: PolicyFiles) -> Path:
    if files.tokenizer is None:
        raise FileNotFoundError(
            f"{files.folder} has no tokenizer ({' or '.join(TOKENIZERS)}); give PaliGemma's with "
            "tokenizer=, such as the tokenizer.model of google/paligemma-3b-pt-224"
        )
    return files.tokenizer


def _tokenizer(given: Tokenizer | str | Path) -> Tokenizer:
    return Tokenizer.from_pretrained(given) if isinstance(given, str | Path) else given


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16 or float16")
    return found
