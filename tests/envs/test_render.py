import numpy as np
import pytest

from envs.tabletop.render import FLOOR, TABLE, render, view
from envs.tabletop.scene import (
    CLOSED,
    COLOURS,
    EASY,
    HOLDING,
    OPEN,
    STANDARD,
    Item,
    Scene,
    sample_scene,
)
from envs.tabletop.truth import boxes, entities, masks, relations


def scenes(count, level=STANDARD):
    """Scenes with the gripper away from the picture's content, so that it hides nothing."""
    for seed in range(count):
        scene = sample_scene(np.random.default_rng(seed), level)
        scene.gripper = (-1.0, -1.0)
        yield scene


def table(gripper=(0.1, 0.9), opening=OPEN, held=None):
    items = (Item("red", "square"), Item("green", "circle"), Item("blue", "plate"))
    places = [(0.3, 0.5), (0.7, 0.5), (0.5, 0.2)]
    return Scene(EASY, items, places, [None, None, None], gripper, opening, held)


@pytest.mark.parametrize("camera", ["top", "wrist"])
@pytest.mark.parametrize("size", [48, 96])
def test_pictures_are_uint8_rgb_of_the_asked_size(camera, size):
    picture = render(table(), camera, size)
    assert picture.dtype == np.uint8
    assert picture.shape == (size, size, 3)


def test_an_unknown_camera_is_refused():
    with pytest.raises(ValueError, match="'side' is unknown; choose one of top, wrist"):
        render(table(), "side", 48)


def test_the_empty_table_is_zero_after_normalisation():
    picture = render(table(), "top", 48)
    assert (picture[47, 47] == TABLE).all()
    assert abs(picture[47, 47] / 127.5 - 1).max() < 0.005


def test_what_lies_beyond_the_table_is_darker_in_the_wrist_picture():
    picture = render(table(gripper=(0.0, 0.5)), "wrist", 48)
    assert (picture[:10, :24] == FLOOR).all()
    assert (picture[:10, 24:] == TABLE).all()


@pytest.mark.parametrize("size", [48, 96])
def test_the_centre_of_every_object_has_its_colour(size):
    for scene in scenes(30):
        picture = render(scene, "top", size)
        for i in scene.objects:
            x, y = scene.position[i]
            pixel = picture[int(y * size), int(x * size)].astype(int)
            nearest = min(COLOURS, key=lambda name: abs(pixel - COLOURS[name]).sum())
            assert nearest == scene.items[i].colour


@pytest.mark.parametrize("camera", ["top", "wrist"])
def test_boxes_enclose_the_visible_pixels_tightly(camera):
    size = 192
    for seed in range(60):
        scene = sample_scene(np.random.default_rng(seed), EASY)
        found, visible = boxes(scene, camera), masks(scene, camera, size)
        slivers = {name for name, b in found.items() if min(b[2] - b[0], b[3] - b[1]) < 2 / size}
        assert set(visible) <= set(found) <= set(visible) | slivers
        for name, mask in visible.items():
            rows, columns = np.nonzero(mask)
            drawn = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / size
            np.testing.assert_allclose(drawn, found[name], atol=2.1 / size)


def test_masks_are_where_the_picture_shows_something():
    size = 96
    for scene in scenes(20):
        picture = render(scene, "top", size).astype(int)
        painted = abs(picture - int(TABLE)).max(axis=2) >= 60
        owned = np.zeros((size, size), bool)
        for name, mask in masks(scene, "top", size).items():
            if not name.endswith("plate"):
                assert painted[mask].all()
            owned |= mask
        assert (painted & ~owned).sum() < 0.005 * size * size  # half-covered pixels


def test_a_shift_of_a_tenth_of_a_pixel_changes_the_picture():
    scene, size = table(), 48
    before = render(scene, "top", size)
    scene.position[0] = (0.3 + 0.1 / size, 0.5)
    assert (render(scene, "top", size) != before).any()


def test_the_wrist_camera_follows_the_gripper():
    assert view(table(gripper=(0.6, 0.3)), "wrist") == pytest.approx((0.35, 0.05, 0.5))
    picture = render(table(gripper=(0.3, 0.5)), "wrist", 48)
    np.testing.assert_array_equal(picture[24, 24], COLOURS["red"])


@pytest.mark.parametrize("camera", ["top", "wrist"])
def test_every_state_of_the_gripper_looks_different(camera):
    pictures = [
        render(table(gripper=(0.3, 0.5), opening=opening, held=held), camera, 48)
        for opening, held in ((1.0, None), (HOLDING, 0), (CLOSED, None))
    ]
    for i in range(3):
        for j in range(i):
            assert (abs(pictures[i].astype(int) - pictures[j]).max(axis=2) > 60).sum() > 5


def test_the_fingers_leave_most_of_a_held_object_in_sight():
    red = np.array(COLOURS["red"])
    for camera in ("top", "wrist"):
        free = render(table(), camera, 96) if camera == "top" else None
        held = render(table(gripper=(0.3, 0.5), opening=HOLDING, held=0), camera, 96)
        shown = (held == red).all(axis=2).sum()
        assert shown > (50 if free is None else 0.8 * (free == red).all(axis=2).sum())


def test_both_objects_of_a_stack_are_visible():
    scene = table()
    scene.position[0], scene.on[0] = scene.position[1], 1
    seen = masks(scene, "top", 48)
    assert seen["red square"].sum() > 8
    assert seen["green circle"].sum() > 8


def test_the_wrist_boxes_leave_out_what_is_out_of_view():
    assert set(boxes(table(gripper=(0.1, 0.9)), "wrist")) == set()
    assert set(boxes(table(gripper=(0.3, 0.5)), "wrist")) == {"red square", "blue plate"}


def test_entities_and_relations_tell_what_is_where():
    scene = table(gripper=(0.7, 0.5), opening=HOLDING, held=1)
    scene.on[0] = 2
    assert entities(scene) == ["red square", "green circle", "blue plate"]
    assert relations(scene) == [
        ("red square", "on", "blue plate"),
        ("green circle", "in", "gripper"),
    ]
    scene.held, scene.on[1] = None, 0
    assert relations(scene)[1] == ("green circle", "on", "red square")
    scene.on[0] = None
    assert relations(scene)[0] == ("red square", "on", "table")
