from dataclasses import replace

import numpy as np
import pytest

from envs.tabletop.goal import distance
from envs.tabletop.scene import EASY, STANDARD, TIP_RADIUS, sample_scene

LEVELS = pytest.mark.parametrize("level", [EASY, STANDARD])


def scenes(level, count):
    return [sample_scene(np.random.default_rng(seed), level) for seed in range(count)]


@LEVELS
def test_every_name_singles_out_one_item(level):
    for scene in scenes(level, 200):
        names = [item.name for item in scene.items]
        assert len(set(names)) == len(names)


def test_no_colour_appears_twice_on_the_easy_level():
    for scene in scenes(EASY, 200):
        colours = [item.colour for item in scene.items]
        assert len(set(colours)) == len(colours)


def test_colours_repeat_among_objects_on_the_standard_level():
    repeated = sum(
        len({scene.items[i].colour for i in scene.objects}) < scene.object_count
        for scene in scenes(STANDARD, 100)
    )
    assert repeated > 20


@LEVELS
def test_counts_cover_the_ranges_of_the_level(level):
    found = [(scene.object_count, len(scene.plates)) for scene in scenes(level, 200)]
    objects, plates = zip(*found, strict=True)
    assert (min(objects), max(objects)) == level.objects
    assert (min(plates), max(plates)) == level.plates


@LEVELS
def test_a_closed_gripper_fits_between_any_two_objects_and_behind_each(level):
    for scene in scenes(level, 200):
        for i in scene.objects:
            assert min(*scene.position[i], *(1 - c for c in scene.position[i])) >= (
                level.object_radius + 2 * TIP_RADIUS
            )
            for j in range(i):
                gap = distance(scene.position[i], scene.position[j]) - 2 * level.object_radius
                assert gap >= 2 * TIP_RADIUS


@LEVELS
def test_no_object_starts_on_a_plate(level):
    for scene in scenes(level, 200):
        for i in scene.objects:
            for j in scene.plates:
                assert distance(scene.position[i], scene.position[j]) > (
                    level.plate_radius + level.object_radius
                )


def test_a_scene_can_be_a_single_object():
    level = replace(EASY, objects=(1, 1), plates=(0, 0))
    assert len(sample_scene(np.random.default_rng(0), level).items) == 1


def test_too_many_things_for_six_colours_are_refused():
    with pytest.raises(ValueError, match="8 things need different colours, but there are 6"):
        sample_scene(np.random.default_rng(0), replace(EASY, objects=(6, 6), plates=(2, 2)))


def test_too_many_things_for_the_table_are_refused():
    level = replace(STANDARD, plates=(6, 6), plate_radius=0.3)
    with pytest.raises(ValueError, match="no room for 5 objects and 6 plates"):
        sample_scene(np.random.default_rng(0), level)


def test_random_grippers_hold_the_favourite_most_and_leave_the_scene_unchanged():
    scene = sample_scene(np.random.default_rng(0), STANDARD)
    before = scene.copy()
    rng = np.random.default_rng(0)
    states = [scene.with_random_gripper(rng, favourite=1) for _ in range(500)]
    assert scene == before
    held = [state.held for state in states if state.held is not None]
    assert 130 < len(held) < 220
    assert held.count(1) > 0.75 * len(held)
    for state in states:
        assert state.opening == (0.5 if state.held is not None else state.opening)
        assert state.held is None or state.position[state.held] == state.gripper
        assert (state.held is None) == (state.opening != 0.5)


def test_a_random_gripper_lets_go_of_what_the_scene_held():
    rng = np.random.default_rng(0)
    scene = sample_scene(rng, EASY)
    for _ in range(50):
        scene = scene.with_random_gripper(rng)
        assert (scene.held is None) == (scene.opening != 0.5)
