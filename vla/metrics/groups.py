"""Scores by kind of question, their plain average, and questions that only count together."""

from collections.abc import Hashable, Sequence

from vla.metrics.score import Score, check_pairs, mean_score


def by_group(score: Score, groups: Sequence[str]) -> tuple[Score, ...]:
    """The mean of `score.per_example` within each group, in order of name: `accuracy/human`.

    groups: one per example. (ChartQA: human, augmented; VQAv2: yes/no, number, other.)
    """
    check_pairs(score.per_example, groups)
    members: dict[str, list[float]] = {}
    for value, group in zip(score.per_example, groups, strict=True):
        members.setdefault(group, []).append(value)
    return tuple(mean_score(f"{score.name}/{g}", members[g]) for g in sorted(members))


def macro_average(name: str, scores: Sequence[Score]) -> Score:
    """The plain average of `scores`, however many examples each has (POPE's three parts, RSVQA's
    kinds of question, the languages of MaRVL). It has no interval.
    """
    if not scores:
        raise ValueError(f"expected at least one score to average as {name}, got none")
    return Score(name, sum(s.value for s in scores) / len(scores), sum(s.n for s in scores))


def all_right(name: str, score: Score, sets: Sequence[Hashable]) -> Score:
    """The share of sets in which every example is right (NLVR2's consistency, one set per
    sentence; MMVP's pairs).

    sets: which set each example is in. Raises ValueError where an example is right in part.
    """
    check_pairs(score.per_example, sets)
    if not {*score.per_example} <= {0.0, 1.0}:
        raise ValueError(f"expected examples that are right or wrong, but {score.name} has shares")
    right: dict[Hashable, float] = {}
    for value, key in zip(score.per_example, sets, strict=True):
        right[key] = min(value, right.get(key, 1.0))
    return mean_score(name, list(right.values()))
