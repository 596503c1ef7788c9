"""Confidence intervals for a success rate."""

from math import sqrt

Z_95 = 1.959963984540054  # the standard normal's 97.5 % point: a two-sided 95 % interval


def wilson(k: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Lower and upper end of the Wilson score interval for `k` successes in `n` trials.

    Unlike p ± z·√(p(1−p)/n) it stays inside [0, 1] and has a width at 0/n and n/n, which is where
    policies are judged. No trials give (0, 1): nothing is known. Raises ValueError unless
    0 <= k <= n. Source: E. B. Wilson, JASA 22 (1927), without continuity correction.
    """
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= successes <= trials, got {k} successes in {n} trials")
    if n == 0:
        return 0.0, 1.0
    p, z2 = k / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if k == 0 else centre - half  # exact at the ends, where rounding would leave ±1e-17
    high = 1.0 if k == n else centre + half
    return low, high
