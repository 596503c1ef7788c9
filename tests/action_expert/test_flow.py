"""Flow matching on fields whose answer is known."""

import pytest
import torch

from action_expert.expert import time_embedding
from action_expert.flow import (
    flow_loss,
    integrate,
    interpolate,
    sample_time,
    target_velocity,
)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_constant_field_integrates_exactly(steps):
    noise = torch.randn(2, 4, 3, dtype=torch.float64)
    actions = torch.randn(2, 4, 3, dtype=torch.float64)
    field = target_velocity(actions, noise)
    torch.testing.assert_close(
        integrate(lambda x, t: field, noise, steps), actions, atol=1e-14, rtol=0
    )


def test_a_linear_field_integrates_to_eulers_product():
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    for steps in (1, 4, 10):
        end = integrate(lambda x, t: x, start, steps)
        assert end.item() == pytest.approx((1 - 1 / steps) ** steps, abs=1e-14)


def test_ten_euler_steps_visit_one_down_to_a_tenth():
    visited = []

    def field(x, t):
        visited.append(t.tolist())
        return torch.zeros_like(x)

    integrate(field, torch.zeros(2, 1, 1), 10)
    expected = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert [row[0] for row in visited] == pytest.approx(expected, abs=1e-7)
    assert all(row[0] == row[1] for row in visited)


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        integrate(lambda x, t: x, torch.zeros(1, 1, 1), 0)


def test_time_one_is_noise_and_time_zero_is_data():
    noise, actions = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(interpolate(actions, noise, torch.ones(2)), noise)
    torch.testing.assert_close(interpolate(actions, noise, torch.zeros(2)), actions)
    middle = interpolate(actions, noise, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(middle[0], 0.25 * noise[0] + 0.75 * actions[0])
    torch.testing.assert_close(middle[1], 0.75 * noise[1] + 0.25 * actions[1])


def test_the_target_is_the_slope_of_the_path():
    noise = torch.randn(2, 3, 4, dtype=torch.float64)
    actions = torch.randn(2, 3, 4, dtype=torch.float64)
    early, late = (
        interpolate(actions, noise, torch.full((2,), t, dtype=torch.float64)) for t in (0.3, 0.4)
    )
    torch.testing.assert_close(
        (late - early) / 0.1, target_velocity(actions, noise), atol=1e-6, rtol=0
    )


def test_training_times_are_openpis_beta_distribution():
    # Beta(1.5, 1) has density 1.5 √x: mean 1.5/2.5 = 0.6, second moment 1.5/3.5, P(x < y) = y^1.5
    n = 200_000
    t = sample_time((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    beta = (t - 0.001) / 0.999
    assert t.mean().item() == pytest.approx(0.001 + 0.999 * 0.6, abs=1e-6)
    assert beta.square().mean().item() == pytest.approx(1.5 / 3.5, abs=1e-6)
    for y in (0.1, 0.5, 0.9):
        assert (beta < y).double().mean().item() == pytest.approx(y**1.5, abs=1e-5)


def test_training_times_stay_between_a_thousandth_and_one():
    ends = sample_time(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([0.001, 1.0]))


def test_the_loss_is_a_mean_over_rows_of_the_mean_over_real_steps():
    velocity = torch.zeros(2, 3, 2)
    target = torch.tensor([[[1.0, 1], [2, 2], [3, 3]], [[4, 4], [50, 50], [60, 60]]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert flow_loss(velocity, target, valid).item() == pytest.approx(((1 + 4 + 9) / 3 + 16) / 2)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert flow_loss(velocity, target, nothing).item() == 0


def test_time_embedding_is_openpis():
    # sines then cosines, periods from 0.004 to 4 in equal ratios (openpi `posemb_sincos`)
    t = torch.tensor([0.3], dtype=torch.float64)
    out = time_embedding(t, 6)[0]
    periods = torch.tensor([0.004, 0.004 * 1000**0.5, 4.0], dtype=torch.float64)
    angle = 2 * torch.pi * 0.3 / periods
    torch.testing.assert_close(out, torch.cat([angle.sin(), angle.cos()]))
