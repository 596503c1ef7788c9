"""Observations and demonstrations to the model's batches, the model's actions back to the robot.

Training and acting go through the same code, so a policy sees on the robot what it saw in training.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbone.image import prepare
from backbone.tokenizer import Tokenizer
from envs.types import IMAGES, STATE, TASK
from vla.batch import Batch
from vla.data.stats import FeatureStats, NormStats
from vla.data.transforms import Compose, MeanStd, PadDims
from vla.policy_config import PolicyConfig


class Processor:
    """Pictures are letterboxed to the model's size, state and actions standardised and padded, the
    instruction cleaned, tokenised and padded.

    Raises ValueError if the statistics belong to another robot, or the tokenizer to another model.
    """

    def __init__(self, config: PolicyConfig, stats: NormStats, tokenizer: Tokenizer):
        self.config, self.stats, self.tokenizer = config, stats, tokenizer
        if tokenizer.vocab_size > config.model.backbone.vocab:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids but the model "
                f"{config.model.backbone.vocab} rows; they do not belong together"
            )
        expert = config.model.expert
        self._state = _to_model("state", stats.state, config.state_dim, expert.state_dim)
        self._actions = _to_model("action", stats.actions, config.action_dim, expert.action_dim)
        self._prompts: dict[str, np.ndarray] = {}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        """A training batch of items of `Demonstrations` that were read at `config.image_size`.

        Raises ValueError if their pictures have another size or a camera is missing.
        """
        for item in items:
            self._check_item(item)
        batch = self._batch(
            [[item["images"][camera] for camera in self.config.cameras] for item in items],
            np.stack([item["state"] for item in items]),
            [item["task"] for item in items],
        )
        actions = self._actions.forward(np.stack([item["actions"] for item in items]))
        valid = np.stack([item["action_valid"] for item in items])
        with_actions = {
            "actions": torch.from_numpy(actions),
            "action_valid": torch.from_numpy(valid),
        }
        return Batch(**{**vars(batch), **with_actions})

    def observe(self, observations: Sequence[Mapping[str, Any]]) -> Batch:
        """A batch of what robots see, without actions.

        observations: each with uint8 RGB [H, W, 3] for every `observation.images.<camera>` of the
        policy, `observation.state` [S] in robot units, and `task`, a text; more is ignored.
        Raises ValueError, naming the observation and its key, for anything else.
        """
        if not len(observations):
            raise ValueError("there are no observations to act on; give at least one")
        for i, observation in enumerate(observations):
            self._check_keys(observation, i)
        return self._batch(
            [self._pictures(observation, i) for i, observation in enumerate(observations)],
            np.stack([self._checked_state(o[STATE], i) for i, o in enumerate(observations)]),
            [_checked_task(o[TASK], i) for i, o in enumerate(observations)],
        )

    def actions(self, chunk: Tensor) -> np.ndarray:
        """The model's [..., A] as actions of the robot: float32 [..., action_dim], robot units.

        Raises ValueError if one is not finite.
        """
        values = chunk.detach().float().cpu().numpy()
        if not np.isfinite(values).all():
            raise ValueError(
                "the model's actions are not finite; its training diverged, or a weight is damaged"
            )
        return self._actions.inverse(values)

    def tokens(self, task: str) -> np.ndarray:
        """[BOS, the cleaned instruction, newline, padding]: int64 [prompt_length].

        Raises ValueError if the instruction is longer; cutting it could turn its meaning around.
        """
        if task not in self._prompts:
            ids = self.tokenizer.prefix(clean_prompt(task))
            length = self.config.prompt_length
            if len(ids) > length:
                raise ValueError(
                    f"the instruction {task[:60]!r} takes {len(ids)} tokens, the policy reads "
                    f"{length}; shorten it, or train with a larger prompt_length"
                )
            self._prompts[task] = np.array(ids + [self.tokenizer.pad] * (length - len(ids)))
        return self._prompts[task]

    def _batch(
        self, pictures: Sequence[Sequence[np.ndarray]], states: np.ndarray, tasks: Sequence[str]
    ) -> Batch:
        images = torch.from_numpy(np.array(pictures)).permute(0, 1, 4, 2, 3)  # [B, N, 3, R, R]
        tokens = torch.from_numpy(np.stack([self.tokens(task) for task in tasks]))
        return Batch(
            images=images.contiguous(),
            image_valid=torch.ones(images.shape[:2], dtype=torch.bool),
            tokens=tokens,
            token_valid=tokens != self.tokenizer.pad,
            state=torch.from_numpy(self._state.forward(states)),
        )

    def _check_item(self, item: Mapping[str, Any]) -> None:
        size = self.config.image_size
        for camera in self.config.cameras:
            if camera not in item["images"]:
                held = ", ".join(item["images"])
                raise ValueError(
                    f"the demonstrations have no camera {camera}, only {held}; "
                    f"open them with cameras={list(self.config.cameras)}"
                )
            if item["images"][camera].shape != (size, size, 3):
                raise ValueError(
                    f"the demonstrations' pictures are {item['images'][camera].shape[0]} px, the "
                    f"model's {size}; open them with image_size={size}"
                )

    def _check_keys(self, observation: Mapping[str, Any], i: int) -> None:
        if not isinstance(observation, Mapping):
            raise ValueError(f"observation {i} is a {type(observation).__name__}, expected a dict")
        for key in (*(IMAGES + camera for camera in self.config.cameras), STATE, TASK):
            if key not in observation:
                held = [str(k) for k in observation]
                close = difflib.get_close_matches(key, held, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(
                    f"observation {i} lacks {key}, it has {', '.join(held) or 'nothing'}{hint}"
                )

    def _pictures(self, observation: Mapping[str, Any], i: int) -> list[np.ndarray]:
        pictures = []
        for camera in self.config.cameras:
            try:
                picture = prepare(
                    observation[IMAGES + camera], self.config.image_size, letterbox=True
                )
            except ValueError as error:
                raise ValueError(f"observation {i}, {IMAGES}{camera}: {error}") from error
            pictures.append(picture)
        return pictures

    def _checked_state(self, value: Any, i: int) -> np.ndarray:
        state, wanted = np.asarray(value), self.config.state_dim
        if state.dtype.kind not in "fiu":
            raise ValueError(f"observation {i}: {STATE} is {state.dtype}, expected float32 numbers")
        if state.shape != (wanted,):
            hint = "the policy belongs to another robot"
            if state.size == wanted:
                hint = "flatten it, one observation at a time"
            raise ValueError(
                f"observation {i}: {STATE} has shape {list(state.shape)}, expected [{wanted}]; "
                f"{hint}"
            )
        if not np.isfinite(state).all():
            dim = int(np.flatnonzero(~np.isfinite(state))[0])
            raise ValueError(
                f"observation {i}: {STATE}[{dim}] is {state[dim]}; check that joint's sensor"
            )
        return state.astype(np.float32)


def clean_prompt(task: str) -> str:
    """The instruction as openpi's π0 reads it (`models/tokenizer.py`): one line, no underscores."""
    return task.strip().replace("_", " ").replace("\n", " ")


def _checked_task(task: Any, i: int) -> str:
    if not isinstance(task, str) or not task.strip():
        raise ValueError(
            f"observation {i}: {TASK} is {task!r}; expected an instruction like 'open the drawer'"
        )
    return task


def _to_model(name: str, stats: FeatureStats, dims: int, width: int) -> Compose:
    if stats.dim != dims:
        raise ValueError(
            f"the statistics have {stats.dim} {name} dimensions, the robot {dims}; "
            "compute them on this robot's dataset"
        )
    return Compose((MeanStd(stats), PadDims(dims, width)))
