"""Order, noise and time follow from (seed, position) and nothing else."""

import numpy as np
import pytest

from vla.training.sampler import (
    TRAIN_NOISE,
    VALIDATION_NOISE,
    draw,
    positions,
    sample_indices,
)

PINNED_ORDER = [9, 4, 2, 1, 0, 7, 8, 5, 3, 6]
PINNED_NOISE = [
    [0.5987716913223267, -0.9144334197044373],
    [0.5286561250686646, -0.7945585250854492],
]
PINNED_UNIFORM = 0.38185365765652046


def test_an_epoch_shows_every_sample_once_and_the_next_one_in_another_order():
    indices = sample_indices(7, range(30), 10)
    epochs = [indices[0:10], indices[10:20], indices[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_is_pinned_so_that_old_runs_can_be_resumed():
    assert sample_indices(0, range(10), 10) == PINNED_ORDER
    noise, uniform = draw(0, [5], (1, 2, 2))
    np.testing.assert_array_equal(noise[0, 0], np.array(PINNED_NOISE, np.float32))
    assert uniform[0, 0] == PINNED_UNIFORM


def test_steps_cover_the_positions_without_gap_whatever_the_batch_size():
    assert [p for step in range(6) for p in positions(step, 2)] == list(range(12))
    assert [p for step in range(3) for p in positions(step, 4)] == list(range(12))


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    noise, uniform = draw(3, range(8), (2, 5, 4))
    assert noise.shape == (8, 2, 5, 4)
    assert noise.dtype == np.float32
    assert uniform.shape == (8, 2)
    for part in (range(0, 3), range(3, 8)):
        some_noise, some_uniform = draw(3, part, (2, 5, 4))
        np.testing.assert_array_equal(some_noise, noise[part])
        np.testing.assert_array_equal(some_uniform, uniform[part])


def test_seeds_positions_and_purposes_have_their_own_noise():
    draws = [draw(0, [0], (1, 3)), draw(1, [0], (1, 3)), draw(0, [1], (1, 3))]
    draws.append(draw(0, [0], (1, 3), purpose=VALIDATION_NOISE))
    values = {float(noise.ravel()[0]) for noise, _ in draws}
    assert len(values) == 4


def test_noise_is_standard_normal_and_u_uniform():
    noise, uniform = draw(0, range(2000), (4, 10), purpose=TRAIN_NOISE)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert uniform.mean() == pytest.approx(0.5, abs=0.02)
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_an_empty_training_split_is_refused():
    with pytest.raises(ValueError, match="no samples to train on"):
        sample_indices(0, range(2), 0)
