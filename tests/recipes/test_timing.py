"""Time that kernels take on several streams."""

from __future__ import annotations

from recipes.benchmarks.timing import covered


def test_what_runs_at_the_same_time_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2)]) == 4, "gaps do not count"
    assert covered([(0, 10), (2, 4), (8, 12), (12, 13), (20, 21)]) == 14
