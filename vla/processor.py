"""Observations and demonstrations to the model's batches, the model's actions back to the robot.

Training and acting go through the same code, so a policy sees on the robot what it saw in training.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbone.image import prepare
from backbone.tokenizer import Tokenizer
from envs.types import IMAGES, STATE, TASK
from vla.batch import Batch
from vla.data.stats import FeatureStats, NormStats
from vla.data.transforms import Compose, MeanStd, PadDims, Quantile, Transform
from vla.policy_config import PolicyConfig
from vla.prompt import instruction_prompt, state_prompt


class Processor:
    """Pictures are fitted to the model's size, state and actions normalised and padded, the
    instruction cleaned, tokenised and padded; π0.5's prompt tells the state too.

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
        self._state = _normalise(config, "state", stats.state, config.state_dim)
        self._pad_state = PadDims(config.state_dim, expert.state_dim)
        self._actions = Compose(
            (
                _normalise(config, "action", stats.actions, config.action_dim),
                PadDims(config.action_dim, expert.action_dim),
            )
        )

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
        state = np.stack([item["state"] for item in items])
        actions = np.stack([item["actions"] for item in items]) - self._offset(state)
        actions = self._actions.forward(actions)
        valid = np.stack([item["action_valid"] for item in items])
        return replace(
            batch,
            actions=torch.from_numpy(actions),
            action_valid=torch.from_numpy(valid),
            action_dim_valid=self._action_dim_valid(len(items)),
        )

    def observe(self, observations: Sequence[Mapping[str, Any]]) -> Batch:
        """A batch of what robots see, without actions.

        observations: each with uint8 RGB [H, W, 3] for every `observation.images.<camera>` of the
        policy, `observation.state` [S] in robot units, and `task`, a text; more is ignored. Where
        the policy's cameras are optional one is enough; the others are masked, or left out where
        no observation has them, which is the same to the model.
        Raises ValueError, naming the observation and its key, for anything else.
        """
        if not len(observations):
            raise ValueError("there are no observations to act on; give at least one")
        for i, observation in enumerate(observations):
            self._check_keys(observation, i)
        pictures = [self._pictures(observation, i) for i, observation in enumerate(observations)]
        rows, valid = _filled(pictures)
        batch = self._batch(
            rows,
            self.states(observations),
            [_checked_task(o[TASK], i) for i, o in enumerate(observations)],
        )
        return replace(batch, image_valid=torch.from_numpy(valid))

    def states(self, observations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Their `observation.state`, float32 [N, S] in robot units. Raises as `observe` does."""
        return np.stack([self._checked_state(o[STATE], i) for i, o in enumerate(observations)])

    def actions(self, chunk: Tensor, state: np.ndarray | None = None) -> np.ndarray:
        """The model's [N, H, A] as actions of the robot: float32 [N, H, action_dim], robot units.

        state: float32 [N, S] in robot units, as the chunk was asked for; needed where the model
        predicts actions relative to it.
        Raises ValueError if one is not finite.
        """
        values = chunk.detach().float().cpu().numpy()
        if not np.isfinite(values).all():
            raise ValueError(
                "the model's actions are not finite; its training diverged, or a weight is damaged"
            )
        values = self._actions.inverse(values)
        if not self.config.relative_dims:
            return values
        if state is None:
            raise ValueError(
                "these actions are relative to the state; give it to Processor.actions"
            )
        return values + self._offset(state)

    def _offset(self, state: np.ndarray) -> np.ndarray:
        """What actions are relative to: float32 [N, 1, action_dim] of a state [N, S], with 0 where
        they are absolute."""
        offset = np.zeros((len(state), 1, self.config.action_dim), np.float32)
        dims = list(self.config.relative_dims)
        offset[:, 0, dims] = state[:, dims]
        return offset

    def tokens(self, task: str, state: np.ndarray) -> np.ndarray:
        """The prompt, padded: int64 [prompt_length].

        state: float32 [S], normalised; it is read where the prompt tells it.
        Raises ValueError if the prompt is longer; cutting it could turn its meaning around.
        """
        if self.config.tells_state:
            ids = state_prompt(self.tokenizer, task, state)
        else:
            clean = self.config.numerics.clean_prompt
            ids = instruction_prompt(self.tokenizer, task, clean)
        length = self.config.prompt_length
        if len(ids) > length:
            raise ValueError(
                f"the prompt of the instruction {task[:60]!r} takes {len(ids)} tokens, the policy "
                f"reads {length}; shorten it, or train with a larger prompt_length"
            )
        return np.array(ids + [self.tokenizer.pad] * (length - len(ids)))

    def _batch(
        self, pictures: Sequence[Sequence[np.ndarray]], states: np.ndarray, tasks: Sequence[str]
    ) -> Batch:
        images = torch.from_numpy(np.array(pictures)).permute(0, 1, 4, 2, 3)  # [B, N, 3, R, R]
        states = self._state.forward(states)
        prompts = [self.tokens(task, state) for task, state in zip(tasks, states, strict=True)]
        tokens = torch.from_numpy(np.stack(prompts))
        return Batch(
            images=images.contiguous(),
            image_valid=torch.ones(images.shape[:2], dtype=torch.bool),
            tokens=tokens,
            token_valid=tokens != self.tokenizer.pad,
            state=torch.from_numpy(self._pad_state.forward(states)),
        )

    def _action_dim_valid(self, rows: int) -> Tensor:
        """Action dimensions that count in the loss, bool [B, A]."""
        width = self.config.model.expert.action_dim
        counted = width if self.config.numerics.loss_over_padding else self.config.action_dim
        return (torch.arange(width) < counted).repeat(rows, 1)

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
        cameras = [IMAGES + camera for camera in self.config.cameras]
        if self.config.optional_cameras:
            cameras = [key for key in cameras if key in observation][:1] or cameras
        for key in (*cameras, STATE, TASK):
            if key not in observation:
                held = [str(k) for k in observation]
                close = difflib.get_close_matches(key, held, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(
                    f"observation {i} lacks {key}, it has {', '.join(held) or 'nothing'}{hint}"
                )

    def _pictures(self, observation: Mapping[str, Any], i: int) -> list[np.ndarray | None]:
        """One per camera, None where an optional one is absent."""
        pictures: list[np.ndarray | None] = []
        size, resize = self.config.image_size, self.config.numerics.resize
        for camera in self.config.cameras:
            if IMAGES + camera not in observation:
                pictures.append(None)
                continue
            try:
                picture = prepare(observation[IMAGES + camera], size, resize)
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


def _filled(
    pictures: Sequence[Sequence[np.ndarray | None]],
) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Rows of pictures without the cameras that no row has, black where one row lacks a camera, and
    which are real, bool [B, N]."""
    cameras = [
        column for column in zip(*pictures, strict=True) if any(p is not None for p in column)
    ]
    example = next(p for p in cameras[0] if p is not None)
    black = np.full_like(example, 0 if example.dtype == np.uint8 else -1)
    rows = [[black if p is None else p for p in row] for row in zip(*cameras, strict=True)]
    valid = [[p is not None for p in row] for row in zip(*cameras, strict=True)]
    return rows, np.array(valid)


def _checked_task(task: Any, i: int) -> str:
    if not isinstance(task, str) or not task.strip():
        raise ValueError(
            f"observation {i}: {TASK} is {task!r}; expected an instruction like 'open the drawer'"
        )
    return task


def _normalise(config: PolicyConfig, name: str, stats: FeatureStats, dims: int) -> Transform:
    if stats.dim != dims:
        raise ValueError(
            f"the statistics have {stats.dim} {name} dimensions, the robot {dims}; "
            "compute them on this robot's dataset"
        )
    numerics = config.numerics
    transform = Quantile if config.by_quantiles else MeanStd
    return transform(stats, numerics.std_epsilon, numerics.epsilon_in_inverse, config.still)
