"""Time and memory on a GPU, the way every benchmark here measures them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType

WAIT = 50  # µs between two kernels, from which on a GPU is taken to wait: launches that follow each other take a few


def milliseconds(work: Callable[[], Any], *, runs: int = 10, warm_up: int = 3) -> float:
    """Median time of `work` by device events, after a warm-up that takes compilation and allocation out of it."""
    for _ in range(warm_up):
        work()
    samples = []
    for _ in range(runs):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end))
    return median(samples)


def by_clock(work: Callable[[], Any], *, runs: int = 3) -> float:
    """Median milliseconds of `work` by the clock, where there is no GPU."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times)


def peak_gib(work: Callable[[], Any]) -> float:
    """Peak memory of `work` above the memory in use before it, GiB."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def synchronize(device: str) -> None:
    """Wait for what a GPU was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


class Gap(NamedTuple):
    """Microseconds in which no kernel runs, and the names of those before and behind."""

    us: float
    before: str
    behind: str


class Kernels(NamedTuple):
    """What a profiler has seen of the kernels of one call.

    Attributes:
        us: Microseconds during which any of them runs.
        by_name: Microseconds and launches of each, the longest ones first.
        gaps: Between kernels of all calls together, the longest ones first.
        runs: Calls.
    """

    us: float
    by_name: dict[str, tuple[float, float]]
    gaps: Sequence[Gap] = ()
    runs: int = 1

    def longest(self, count: int) -> dict[str, str]:
        """The kernels that take most, in words."""
        some = list(self.by_name.items())[:count]
        return {name[:80]: f"{us:.1f} µs, {launches:g} launches" for name, (us, launches) in some}

    def waits(self, count: int = 5) -> dict[str, Any]:
        """Of a call the time in which the GPU waits for the host for more than `WAIT`, how often, and where most."""
        long = [gap for gap in self.gaps if gap.us > WAIT]
        longest = [f"{gap.us:.0f} µs between {gap.before[:80]} and {gap.behind[:80]}" for gap in long[:count]]
        spent = sum(gap.us for gap in long) / self.runs / 1e3
        return {"no kernel runs, ms": spent, "times": len(long) / self.runs, "longest": longest}


def kernels_us(work: Callable[[], Any], *, runs: int = 20, warm_up: int = 3) -> float:
    """Microseconds during which kernels of one call of `work` run, as the profiler sees them.

    Gaps between them do not count, and kernels that run at the same time, on several streams, count once.
    """
    return kernels(work, runs=runs, warm_up=warm_up).us


def kernels(work: Callable[[], Any], *, runs: int = 20, warm_up: int = 3) -> Kernels:
    """The same, and which kernels they are."""
    for _ in range(warm_up):
        work()
    return summed(on_device(work, runs), runs)


def on_device(work: Callable[[], Any], runs: int = 1) -> list[tuple[str, float, float]]:
    """What the profiler sees a GPU do in so many calls: names, when each began and ended, in microseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(runs):
            work()
        torch.cuda.synchronize()
    events = [event for event in seen.events() or () if event.device_type == DeviceType.CUDA]
    return [(e.name, e.time_range.start, e.time_range.end) for e in events if not e.is_user_annotation]


def summed(times: Sequence[tuple[str, float, float]], runs: int) -> Kernels:
    """Names of kernels, when each began and ended, of so many calls, as those of one."""
    by_name: dict[str, tuple[float, float]] = {}
    for name, start, end in times:
        took, count = by_name.get(name, (0.0, 0.0))
        by_name[name] = took + (end - start) / runs, count + 1 / runs
    longest = sorted(by_name.items(), key=lambda item: -item[1][0])
    return Kernels(covered((start, end) for _, start, end in times) / runs, dict(longest), gaps(times), runs)


def gaps(times: Iterable[tuple[str, float, float]]) -> list[Gap]:
    """Where none of these kernels runs, between the first and the last of them, the longest gaps first."""
    found, before, until = [], "", float("inf")
    for name, start, end in sorted(times, key=lambda one: one[1:]):
        if start > until:
            found.append(Gap(start - until, before, name))
        if end >= until or not before:
            before, until = name, end
    return sorted(found, key=lambda gap: -gap.us)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much some spans of time, each from its first number to its second, cover together."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
