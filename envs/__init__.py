"""Worlds for policies: gymnasium environments, rollouts, scripted experts.

Importing this package registers "Tabletop-easy-v0" and "Tabletop-v0" with gymnasium.
"""

from envs.experts import Demonstration, ExpertPolicy, RandomPolicy, demonstrations
from envs.make import arguments, make
from envs.record import side_by_side, write_mp4
from envs.rollout import rollout
from envs.types import Episode, Observation, Policy

__all__ = [
    "Demonstration",
    "Episode",
    "ExpertPolicy",
    "Observation",
    "Policy",
    "RandomPolicy",
    "arguments",
    "demonstrations",
    "make",
    "rollout",
    "side_by_side",
    "write_mp4",
]
