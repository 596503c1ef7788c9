from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from envs.tabletop.goal import MIX, Goal, can_push, feasible_goals, sample_goal, swapped_goal
from envs.tabletop.instruction import PHRASES, instruction, phrase
from envs.tabletop.scene import CLOSED, EASY, HOLDING, OPEN, STANDARD, Item, Scene, sample_scene

LEVELS = pytest.mark.parametrize("level", [EASY, STANDARD])


def table(a=(0.5, 0.5), b=(0.8, 0.8), plate=(0.2, 0.2)):
    items = (Item("red", "square"), Item("green", "circle"), Item("blue", "plate"))
    return Scene(EASY, items, [a, b, plate], [None, None, None], (0.5, 0.5))


def sampled(level, count):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, level)
        yield scene, sample_goal(scene, rng), rng


@LEVELS
def test_goals_mix_as_promised_and_never_hold_at_the_start(level):
    count: Counter[str] = Counter()
    for scene, goal, _ in sampled(level, 600):
        assert not goal.holds(scene)
        count[goal.kind] += 1
    for kind, share in MIX.items():
        assert count[kind] / 600 == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(("kind", "target"), [("put", 2), ("stack", 1)])
def test_put_and_stack_hold_once_the_object_rests_there_and_the_gripper_is_open(kind, target):
    scene, goal = table(), Goal(kind, 0, target)
    assert not goal.holds(scene)
    scene.on[0] = target
    for opening, holds in ((OPEN, True), (HOLDING, False), (CLOSED, False)):
        scene.opening = opening
        assert goal.holds(scene) == holds


@pytest.mark.parametrize(
    ("side", "place"),
    [("left", (0.22, 0.5)), ("right", (0.78, 0.5)), ("top", (0.5, 0.22)), ("bottom", (0.5, 0.78))],
)
def test_a_push_ends_in_the_strip_along_its_side(side, place):
    towards_centre = tuple(c + 0.001 * np.sign(0.5 - c) for c in place)
    towards_edge = tuple(c - 0.001 * np.sign(0.5 - c) for c in place)
    assert Goal("push", 0, side).holds(table(a=towards_edge))
    assert not Goal("push", 0, side).holds(table(a=towards_centre))


def test_a_push_needs_a_free_way_and_room_behind():
    assert can_push(table(a=(0.5, 0.5), b=(0.8, 0.8)), 0, "right")
    assert not can_push(table(a=(0.5, 0.5), b=(0.8, 0.55)), 0, "right")  # another in the way
    assert not can_push(table(a=(0.08, 0.5)), 0, "right")  # no room for the gripper
    assert not can_push(table(a=(0.75, 0.5)), 0, "right")  # as good as there


@LEVELS
def test_a_swap_keeps_the_kind_and_names_another_object(level):
    for scene, goal, rng in sampled(level, 300):
        other = swapped_goal(scene, goal, rng)
        assert other.kind == goal.kind
        assert other.object != goal.object
        assert not other.holds(scene)
        assert other in feasible_goals(scene, goal.kind)
        if goal.kind == "put":
            assert other.target == goal.target


def test_one_object_is_enough_for_a_goal_but_not_for_a_swap():
    level = replace(EASY, objects=(1, 1), plates=(1, 1))
    rng = np.random.default_rng(0)
    scene = sample_scene(rng, level)
    goal = sample_goal(scene, rng)
    with pytest.raises(ValueError, match="swap needs two objects"):
        swapped_goal(scene, goal, rng)


def test_every_kind_has_five_wordings_or_more_that_all_differ():
    for kind in MIX:
        assert len(set(PHRASES[kind])) == len(PHRASES[kind]) >= 5


def test_instructions_name_object_and_target():
    scene = table()
    assert phrase(Goal("put", 0, 2), scene, 0) == "put the red square on the blue plate"
    assert phrase(Goal("push", 1, "top"), scene, 1) == "slide the green circle to the top side"
    assert phrase(Goal("stack", 1, 0), scene, 0) == "stack the green circle on the red square"


def test_all_wordings_are_used():
    rng = np.random.default_rng(0)
    for goal in (Goal("put", 0, 2), Goal("push", 0, "left"), Goal("stack", 0, 1)):
        found = {instruction(goal, table(), rng) for _ in range(200)}
        assert len(found) == len(PHRASES[goal.kind])
