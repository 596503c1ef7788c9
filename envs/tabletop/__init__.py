"""The built-in world: coloured objects and plates on a table, a gripper, and an instruction."""

from envs.tabletop.goal import Goal, sample_goal, swapped_goal
from envs.tabletop.instruction import instruction
from envs.tabletop.render import CAMERAS, render
from envs.tabletop.scene import COLOURS, EASY, SHAPES, STANDARD, Item, Level, Scene, sample_scene

__all__ = [
    "CAMERAS",
    "COLOURS",
    "EASY",
    "SHAPES",
    "STANDARD",
    "Goal",
    "Item",
    "Level",
    "Scene",
    "instruction",
    "render",
    "sample_goal",
    "sample_scene",
    "swapped_goal",
]
