"""Facts of the table, on scenes laid by hand: two objects and a plate of the easy level."""

import pytest

from envs.tabletop.physics import advance
from envs.tabletop.scene import CLOSED, EASY, HOLDING, OPEN, STEP, Item, Scene

A, B, PLATE = 0, 1, 2
STAY_OPEN, CLOSE = (0, 0, -1), (0, 0, 1)
TOUCH = EASY.object_radius + 0.015


def table(a=(0.3, 0.5), b=(0.7, 0.5), plate=(0.5, 0.2), gripper=(0.3, 0.5)):
    items = (Item("red", "square"), Item("green", "circle"), Item("blue", "plate"))
    return Scene(EASY, items, [a, b, plate], [None, None, None], gripper)


def carry_to(scene, place):
    while scene.gripper != pytest.approx(place):
        dx, dy = ((p - g) / STEP for p, g in zip(place, scene.gripper, strict=True))
        advance(scene, (dx, dy, 1))
    advance(scene, STAY_OPEN)


def test_a_full_action_moves_one_step_and_larger_ones_are_clipped():
    scene = table(gripper=(0.5, 0.5))
    advance(scene, (0.5, -7, -1))
    assert scene.gripper == pytest.approx((0.53, 0.44))


def test_the_gripper_stays_on_the_table():
    scene = table(gripper=(0.02, 0.99))
    advance(scene, (-1, 1, -1))
    assert scene.gripper == (0, 1)


def test_an_open_gripper_passes_above_objects():
    scene = table(gripper=(0.2, 0.5))
    for _ in range(10):
        advance(scene, (1, 0, -1))
    assert scene.position[A] == (0.3, 0.5)


def test_closing_within_reach_holds_and_centres_the_nearest_object():
    scene = table(gripper=(0.3 + EASY.grasp_radius - 0.001, 0.5))
    advance(scene, CLOSE)
    assert (scene.held, scene.opening) == (A, HOLDING)
    assert scene.position[A] == scene.gripper


def test_closing_out_of_reach_holds_nothing():
    scene = table(gripper=(0.3 + EASY.grasp_radius + 0.001, 0.5))
    advance(scene, CLOSE)
    assert (scene.held, scene.opening) == (None, CLOSED)
    assert scene.position[A] == (0.3, 0.5)


def test_a_held_object_follows_and_is_released_onto_the_table():
    scene = table()
    advance(scene, CLOSE)
    carry_to(scene, (0.3, 0.8))
    assert (scene.held, scene.opening, scene.on[A]) == (None, OPEN, None)
    assert scene.position[A] == pytest.approx((0.3, 0.8))


@pytest.mark.parametrize(("offset", "on"), [(-0.001, PLATE), (0.001, None)])
def test_an_object_is_on_the_plate_within_the_plate_tolerance(offset, on):
    scene = table()
    advance(scene, CLOSE)
    carry_to(scene, (0.5, 0.2 + EASY.plate_tolerance + offset))
    assert scene.on[A] == on


def test_a_on_b_differs_from_b_on_a():
    scene = table()
    advance(scene, CLOSE)
    carry_to(scene, (0.7, 0.5))
    assert scene.on[:2] == [B, None]
    scene = table(gripper=(0.7, 0.5))
    advance(scene, CLOSE)
    carry_to(scene, (0.3, 0.5))
    assert scene.on[:2] == [None, A]


def test_closing_on_a_stack_takes_the_topmost():
    scene = table(a=(0.7, 0.5), gripper=(0.7, 0.5))
    scene.on[A] = B
    advance(scene, CLOSE)
    assert scene.held == A
    assert scene.on[A] is None


def test_an_object_on_a_plate_can_itself_carry_one():
    scene = table(b=(0.5, 0.2))
    scene.on[B] = PLATE
    advance(scene, CLOSE)
    carry_to(scene, (0.5, 0.2))
    assert scene.on[:2] == [B, PLATE]
    assert (scene.depth(A), scene.depth(B)) == (1, 0)


def test_an_object_let_go_over_the_edge_lies_wholly_on_the_table():
    scene = table()
    advance(scene, CLOSE)
    carry_to(scene, (0, 0.5))
    assert scene.position[A] == pytest.approx((EASY.object_radius, 0.5))


def test_a_closed_gripper_pushes_from_the_moment_of_contact():
    gap = 0.02
    scene = table(gripper=(0.3 - TOUCH - gap, 0.5))
    advance(scene, CLOSE)
    advance(scene, (1, 0, 1))
    assert scene.position[A] == pytest.approx((0.3 + STEP - gap, 0.5))
    advance(scene, (1, 0.5, 1))  # no slip: in contact the object moves exactly as the gripper does
    assert scene.position[A] == pytest.approx((0.3 + 2 * STEP - gap, 0.5 + 0.5 * STEP))


def test_a_closed_gripper_that_moves_away_pulls_nothing():
    scene = table(gripper=(0.3 - TOUCH, 0.5))
    advance(scene, CLOSE)
    advance(scene, (-1, 0, 1))
    assert scene.position[A] == (0.3, 0.5)


def test_a_push_that_passes_beside_an_object_leaves_it():
    scene = table(gripper=(0.2, 0.5 - TOUCH - 0.001))
    advance(scene, CLOSE)
    for _ in range(4):
        advance(scene, (1, 0, 1))
    assert scene.position[A] == (0.3, 0.5)


def test_a_pushed_object_stops_at_the_edge_of_the_table():
    scene = table(a=(0.85, 0.5), b=(0.3, 0.5), gripper=(0.85 - TOUCH, 0.5))
    advance(scene, CLOSE)
    for _ in range(5):
        advance(scene, (1, 0, 1))
    assert scene.position[A] == (1 - EASY.object_radius, 0.5)


def test_a_pushed_stack_moves_as_one_and_off_its_plate():
    scene = table(a=(0.5, 0.21), b=(0.5, 0.2), gripper=(0.5 - TOUCH, 0.2))
    scene.on[:2] = [B, PLATE]
    advance(scene, CLOSE)
    assert scene.opening == CLOSED
    advance(scene, (1, 0, 1))
    assert scene.on[:2] == [B, PLATE]
    advance(scene, (1, 0, 1))
    assert scene.on[:2] == [B, None]
    assert scene.position[A] == pytest.approx((0.62, 0.21))
    assert scene.position[B] == pytest.approx((0.62, 0.2))
