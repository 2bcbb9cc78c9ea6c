"""Time that kernels take, on several streams and by name."""

from __future__ import annotations

from recipes.benchmarks.timing import covered, summed


def test_what_runs_at_the_same_time_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2)]) == 4, "gaps do not count"
    assert covered([(0, 10), (2, 4), (8, 12), (12, 13), (20, 21)]) == 14


def test_kernels_of_a_call_are_the_mean_of_several_by_name_the_longest_first() -> None:
    found = summed([("short", 0, 1), ("long", 1, 5), ("short", 20, 22), ("long", 21, 26), ("long", 30, 33)], 2)
    assert found.us == (5 + 6 + 3) / 2
    assert list(found.by_name.items()) == [("long", (6, 1.5)), ("short", (1.5, 1))]
