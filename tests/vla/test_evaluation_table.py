"""Success tables of made-up episodes."""

import pytest

from envs.types import Episode
from vla.evaluation.intervals import wilson
from vla.evaluation.table import success_table


def episode(task: str, success: bool, length: int = 10, latencies: tuple = (0.010,)) -> Episode:
    return Episode("Tabletop-easy-v0", 7, task, success, length, 1.0, list(latencies))


def test_rows_count_their_own_episodes_and_the_total_counts_all():
    episodes = [episode("b", True, 10), episode("a", False, 30), episode("b", False, 20)]
    table = success_table(episodes, lambda e: e.task)
    assert [(r.name, r.k, r.n, r.mean_length) for r in table.rows] == [
        ("a", 0, 1, 30),
        ("b", 1, 2, 15),
    ]
    assert (table.total.k, table.total.n, table.total.mean_length) == (1, 3, 20)
    assert (table.total.low, table.total.high) == wilson(1, 3)


def test_latency_is_over_all_calls_in_milliseconds():
    table = success_table([episode("a", True, latencies=tuple(i / 1000 for i in range(101)))], str)
    assert table.total.latency_p50_ms == pytest.approx(50)
    assert table.total.latency_p95_ms == pytest.approx(95)
    assert success_table([episode("a", True, latencies=())], str).total.latency_p50_ms is None


def test_the_printed_table_is_aligned_and_ends_with_the_total():
    episodes = [episode("put", True)] * 9 + [episode("put", False), episode("push to a side", True)]
    assert success_table(episodes, lambda e: e.task).text().splitlines() == [
        "task                  success   95 % interval   steps  policy ms p50/p95",
        "push to a side      1/1 100%  20.7% – 100.0%    10.0        10.0 / 10.0",
        "put                9/10  90%   59.6% – 98.2%    10.0        10.0 / 10.0",
        "------------------------------------------------------------------------",
        "all               10/11  91%   62.3% – 98.4%    10.0        10.0 / 10.0",
    ]


def test_a_single_group_is_printed_once():
    assert success_table([episode("put", True)], str).text().count("\n") == 1


def test_no_episodes_make_no_table():
    with pytest.raises(ValueError, match="at least one episode"):
        success_table([], str)
