"""Learning rates are openpi's and big_vision's, value by value."""

import csv
import json
from pathlib import Path

import pytest

from vla.training.schedule import Schedule, continued, learning_rate, multiplier

GOLDEN = Path(__file__).parents[1] / "golden/schedules"


def golden_rows(curve: str) -> list[tuple[dict, int, float]]:
    with (GOLDEN / "openpi_schedules.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["schedule"].startswith(curve)]
    return [(json.loads(row["config"]), int(row["step"]), float(row["lr"])) for row in rows]


def test_every_golden_value_of_openpis_cosine_is_met():
    rows = golden_rows("cosine")
    assert len(rows) == 61
    for config, step, expected in rows:
        peak = config["peak_lr"]
        ours = learning_rate(
            step,
            peak=peak,
            warmup=config["warmup_steps"],
            decay_steps=config["decay_steps"],
            end=config["decay_lr"],
        )
        # jax computes in float32: its rounding is relative to the peak while warming up
        assert ours == pytest.approx(expected, rel=1e-6, abs=1e-7 * peak), (config, step)


def test_without_warmup_the_first_update_runs_at_the_peak():
    rates = [learning_rate(k, peak=1.0, warmup=0, decay_steps=4, end=0.0) for k in range(6)]
    assert rates == pytest.approx([1.0, 0.8535533905932737, 0.5, 0.1464466094067262, 0.0, 0.0])


def test_a_run_shorter_than_its_warmup_only_rises():
    rates = [learning_rate(k, peak=1.0, warmup=3, decay_steps=2, end=0.1) for k in range(3)]
    assert rates == pytest.approx([0.25, 0.5, 0.75])


def test_every_golden_value_of_openpis_rsqrt_is_met():
    rows = golden_rows("rsqrt")
    assert len(rows) == 29
    for config, step, expected in rows:
        peak, warmup = config["peak_lr"], config["warmup_steps"]
        schedule = Schedule("rsqrt", warmup, early=True, timescale=config["timescale"])
        ours = peak * multiplier(schedule, step, 10**6)
        assert ours == pytest.approx(expected, rel=1e-6, abs=1e-7 * peak), (config, step)


def ours(kwargs: dict) -> Schedule:
    """A schedule by big_vision's names."""
    names = {"decay_type": "decay", "warmup_steps": "warmup", "warmup_percent": "warmup_share"}
    names |= {"cooldown_steps": "cooldown"}
    return Schedule(**{names.get(str(name), str(name)): value for name, value in kwargs.items()})


def test_every_golden_value_of_big_visions_schedules_is_met():
    curves = json.loads((GOLDEN / "big_vision_schedules.json").read_text())
    assert {c["kwargs"]["decay_type"] for c in curves.values()} == {"rsqrt", "cosine", "linear"}
    for name, curve in curves.items():
        schedule = ours(curve["kwargs"])
        for step, expected in zip(curve["step"], curve["multiplier"], strict=True):
            found = multiplier(schedule, step, curve["total_steps"])
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-7), (name, step)


@pytest.mark.parametrize(("batch", "larger"), [(8, 8), (8, 2), (4, 16)])
def test_a_stage_goes_on_where_the_curve_of_the_last_one_ended(batch, larger):
    """The rate after so many examples is the same one, whatever the batch of the second stage."""
    first = Schedule("rsqrt", warmup=50, timescale=100)
    second = continued(first, 400, batch, larger)
    assert multiplier(second, 0, 10) == pytest.approx(multiplier(first, 400, 400), rel=1e-12)
    further = 3 * batch * larger  # examples
    whole = multiplier(first, 400 + further // batch, 10**6)
    assert multiplier(second, further // larger, 10**6) == pytest.approx(whole, rel=1e-12)
    third = continued(second, further // larger, larger, batch)
    assert multiplier(third, 0, 10) == pytest.approx(whole, rel=1e-12)


def test_a_part_with_a_slow_warm_up_rises_on_a_line_and_then_falls_as_the_others_do():
    """PaliGemma's image encoder."""
    slow = Schedule("rsqrt", warmup=1000, timescale=500)
    for step in (0, 10, 500, 1000):
        assert multiplier(slow, step, 10**4) == pytest.approx(step / 1000)
    for later in (1, 500, 5000):
        fast = multiplier(Schedule("rsqrt", warmup=10, timescale=500), 10 + later, 10**4)
        assert multiplier(slow, 1000 + later, 10**4) == pytest.approx(fast)


def test_only_an_rsqrt_after_its_warm_up_goes_on():
    with pytest.raises(ValueError, match="only an rsqrt schedule goes on over stages, not cosine"):
        continued(Schedule(), 10, 1, 1)
    with pytest.raises(ValueError, match="the warm-up of 20 steps has not ended after 10"):
        continued(Schedule("rsqrt", warmup=20), 10, 1, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup": -1}, r"schedule\.warmup is -1; it must be 0 or more steps"),
        ({"warmup_share": 5}, r"schedule\.warmup_share is 5; give a share, 0 to 1"),
        ({"warmup": 5, "warmup_share": 0.1}, "both warmup and warmup_share; give one"),
        ({"timescale": 0}, r"schedule\.timescale is 0; give steps above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)
