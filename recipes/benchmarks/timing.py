"""Time and memory on a GPU, the way every benchmark here measures them."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


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
