"""Time that kernels take, on several streams and by name."""

from __future__ import annotations

from recipes.benchmarks.timing import covered, gaps, summed


def test_what_runs_at_the_same_time_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2)]) == 4, "gaps do not count"
    assert covered([(0, 10), (2, 4), (8, 12), (12, 13), (20, 21)]) == 14


def test_kernels_of_a_call_are_the_mean_of_several_by_name_the_longest_first() -> None:
    found = summed([("short", 0, 1), ("long", 1, 5), ("short", 20, 22), ("long", 21, 26), ("long", 30, 33)], 2)
    assert found.us == (5 + 6 + 3) / 2
    assert list(found.by_name.items()) == [("long", (6, 1.5)), ("short", (1.5, 1))]


def test_gaps_are_where_no_kernel_of_any_stream_runs() -> None:
    times = [("one", 10, 20), ("long", 15, 40), ("inside", 22, 25), ("next", 40, 45), ("last", 145, 150)]
    assert gaps(times) == [(100, "next", "last")]
    assert gaps([("b", 30, 31), ("a", 0, 10), ("c", 100, 101)]) == [(69, "b", "c"), (20, "a", "b")]
    assert gaps([]) == gaps([("alone", 3, 4)]) == []


def test_short_gaps_are_no_waits_and_the_longest_are_named() -> None:
    starts = [0, 10, 70, 200, 261, 900]  # of kernels of 5 µs: gaps of 5, 55, 125, 56 and 634
    found = summed([(f"k{n}", start, start + 5) for n, start in enumerate(starts)], 2).waits(2)
    assert found == {
        "no kernel runs, ms": (55 + 125 + 56 + 634) / 2 / 1e3,
        "times": 2.0,
        "longest": ["634 µs between k4 and k5", "125 µs between k2 and k3"],
    }
    assert summed([("a", 0, 1)], 1).waits() == {"no kernel runs, ms": 0.0, "times": 0.0, "longest": []}
