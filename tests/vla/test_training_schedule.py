"""The learning rate is openpi's, value by value."""

import csv
import json
from pathlib import Path

import pytest

from vla.training.schedule import learning_rate

GOLDEN = Path(__file__).parents[1] / "golden/schedules/openpi_schedules.csv"


def golden_rows() -> list[tuple[dict, int, float]]:
    with GOLDEN.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["schedule"].startswith("cosine")]
    return [(json.loads(row["config"]), int(row["step"]), float(row["lr"])) for row in rows]


def test_every_golden_value_of_openpis_cosine_is_met():
    rows = golden_rows()
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
