"""Wilson intervals against their closed forms and their definition."""

from math import sqrt

import pytest

from vla.evaluation.intervals import Z_95, wilson


def test_no_success_and_all_successes_have_the_closed_form_ends():
    z2 = Z_95**2
    assert wilson(0, 10) == (0.0, pytest.approx(z2 / (10 + z2)))
    assert wilson(10, 10) == (pytest.approx(10 / (10 + z2)), 1.0)


def test_ninety_of_a_hundred_matches_the_published_interval():
    assert wilson(90, 100) == pytest.approx((0.825634, 0.944771), abs=1e-6)


@pytest.mark.parametrize(("k", "n"), [(1, 3), (7, 20), (50, 100), (499, 500)])
def test_the_ends_are_the_rates_that_lie_z_standard_errors_from_the_measured_one(k, n):
    for p in wilson(k, n):
        assert abs(k / n - p) == pytest.approx(Z_95 * sqrt(p * (1 - p) / n))


def test_no_trials_leave_everything_open():
    assert wilson(0, 0) == (0.0, 1.0)


def test_more_successes_than_trials_are_refused():
    with pytest.raises(ValueError, match="got 5 successes in 4 trials"):
        wilson(5, 4)
