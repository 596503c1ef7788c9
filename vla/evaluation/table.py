"""Success tables: episodes grouped by what was asked, each group with its interval."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from envs.types import Episode
from vla.evaluation.intervals import wilson


@dataclass(frozen=True)
class Row:
    """One group of episodes: `k` of `n` succeeded, at a rate inside [`low`, `high`] with 95 %
    confidence (Wilson). `mean_length` in environment steps; latencies in milliseconds for one call
    of the policy (which may serve several environments at once), None where it was never called.
    """

    name: str
    k: int
    n: int
    low: float
    high: float
    mean_length: float
    latency_p50_ms: float | None
    latency_p95_ms: float | None

    @property
    def rate(self) -> float:
        return self.k / self.n if self.n else 0.0


@dataclass(frozen=True)
class Table:
    """A row per group, in order of name, and the row of all episodes together."""

    rows: tuple[Row, ...]
    total: Row

    def text(self) -> str:
        """The table as aligned lines for a terminal; one group alone is shown as the total."""
        rows = [*self.rows, self.total] if len(self.rows) > 1 else [self.total]
        width = max(len("task"), *(len(r.name) for r in rows))
        head = f"{'task':<{width}}  {'success':>13}  {'95 % interval':>14}  {'steps':>6}"
        lines = [f"{head}  {'policy ms p50/p95':>17}"]
        lines += [_line(r, width) for r in rows]
        if len(rows) > 1:
            lines.insert(-1, "-" * len(lines[0]))
        return "\n".join(lines)

    def to_json(self) -> dict:
        """Rows and total as plain values, in the order printed."""
        return {"rows": [asdict(r) for r in self.rows], "total": asdict(self.total)}


def success_table(episodes: Sequence[Episode], group: Callable[[Episode], str]) -> Table:
    """Group `episodes` by `group(episode)` and count. Raises ValueError where there are none."""
    if not episodes:
        raise ValueError("expected at least one episode to make a table of, got none")
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(group(episode), []).append(episode)
    rows = tuple(success_row(name, groups[name]) for name in sorted(groups))
    return Table(rows, success_row("all", episodes))


def success_row(name: str, episodes: Sequence[Episode]) -> Row:
    """Count `episodes` (at least one) as one row."""
    k, n = sum(e.success for e in episodes), len(episodes)
    calls = [seconds for e in episodes for seconds in e.latencies]
    p50, p95 = (1e3 * np.percentile(calls, (50, 95))).tolist() if calls else (None, None)
    mean_length = float(np.mean([e.length for e in episodes]))
    return Row(name, k, n, *wilson(k, n), mean_length, p50, p95)


def _line(row: Row, width: int) -> str:
    count, interval = f"{row.k}/{row.n}", f"{row.low:.1%} – {row.high:.1%}"
    latency = "–"
    if row.latency_p50_ms is not None and row.latency_p95_ms is not None:
        latency = f"{row.latency_p50_ms:.1f} / {row.latency_p95_ms:.1f}"
    return (
        f"{row.name:<{width}}  {count:>7} {row.rate:>4.0%}  {interval:>14}  "
        f"{row.mean_length:>6.1f}  {latency:>17}"
    )
