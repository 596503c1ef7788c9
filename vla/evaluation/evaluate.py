"""Roll a policy out over seeds, and say and save how well it did."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from envs.record import side_by_side, write_mp4
from envs.rollout import rollout
from envs.types import Episode, Policy
from vla.evaluation.table import Table, success_table

SIDES = ("left", "right", "top", "bottom")
ROUNDS = 2  # episodes per environment between two movements of the progress bar


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one evaluation, in the order of their seeds, and their success table.

    settings: what they were rolled out with (replan_every, num_envs, …), for the record.
    """

    env_id: str
    episodes: tuple[Episode, ...]
    table: Table
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Settings, table and episodes as plain values: what `eval.json` holds."""
        episodes = [_episode_json(e) for e in self.episodes]
        return {"env": self.env_id, **self.settings, **self.table.to_json(), "episodes": episodes}


def evaluate(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    *,
    num_envs: int = 16,
    replan_every: int | None = None,
    max_steps: int | None = None,
    options: dict[str, Any] | None = None,
    record: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Roll `policy` out, one episode per seed; arguments as for `envs.rollout`, and `progress`
    shows a bar with the successes so far.

    Raises ValueError for an unknown environment and without seeds.
    """
    settings = {"replan_every": replan_every, "num_envs": num_envs, "max_steps": max_steps}
    episodes: list[Episode] = []
    with tqdm(total=len(seeds), desc="rollouts", unit="ep", disable=not progress) as bar:
        for group in _groups(seeds, ROUNDS * num_envs):
            shots = max(0, record - len(episodes))
            episodes += rollout(
                policy,
                env_id,
                group,
                options=options,
                record=shots,
                env_kwargs=env_kwargs,
                **settings,
            )
            bar.update(len(group))
            bar.set_postfix(success=f"{sum(e.success for e in episodes)}/{len(episodes)}")
    table = success_table(episodes, instruction_kind)
    return Evaluation(env_id, tuple(episodes), table, {**settings, "options": options or {}})


def instruction_kind(episode: Episode) -> str:
    """What to group an episode under: in the built-in world whether its instruction says to put,
    push or stack something (the same verbs occur in all three, so the target decides), elsewhere
    the instruction itself.
    """
    if not episode.env_id.startswith("Tabletop"):
        return episode.task
    words = episode.task.split()
    if words[-1] == "plate":
        return "put on a plate"
    return "push to a side" if {*words[-2:]} & {*SIDES} else "stack on an object"


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `eval.json` and a video of every recorded episode to `folder`, made where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False)
    (folder / "eval.json").write_text(text + "\n", encoding="utf-8")
    for episode in evaluation.episodes:
        if episode.frames is not None:
            write_video(episode, folder / f"{episode_name(episode)}.mp4")


def write_video(episode: Episode, path: Path) -> tuple[int, int]:
    """Film a recorded `episode`, all cameras side by side; return (width, height) in pixels."""
    assert episode.frames is not None, "only recorded episodes have frames"
    frames = side_by_side(episode.frames)
    write_mp4(path, frames)
    return frames.shape[2], frames.shape[1]


def episode_name(episode: Episode) -> str:
    """`seed-1000003-success`, for file names."""
    return f"seed-{episode.seed}-{'success' if episode.success else 'failure'}"


def _groups(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (seeds[i : i + size] for i in range(0, len(seeds), size))


def _episode_json(episode: Episode) -> dict[str, Any]:
    names = ("seed", "task", "success", "original_success", "length", "reward", "latencies")
    return {name: getattr(episode, name) for name in names}
