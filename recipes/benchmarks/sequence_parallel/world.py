"""The processes of a part of the benchmark: who they are, and time and memory of the slowest of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among the others; tiny sizes, fp32 and gloo where there is no GPU."""

    rank: int
    size: int
    tiny: bool
    device: torch.device

    @classmethod
    def join(cls, tiny: bool) -> World:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        gpu = torch.cuda.is_available() and not tiny
        if gpu:
            torch.cuda.set_device(rank)
        else:
            torch.set_num_threads(1)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(seconds=180))
        return cls(rank, size, tiny, torch.device("cuda", rank) if gpu else torch.device("cpu"))

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.gpu else torch.float32

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.gpu:
            torch.cuda.synchronize()

    def worst(self, *values: float) -> list[float]:
        """The largest of each value among the processes."""
        x = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(x, dist.ReduceOp.MAX)
        return x.tolist()

    def mean(self, value: float) -> float:
        """The mean of a value over the processes."""
        x = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(x)
        return float(x) / self.size

    def milliseconds(self, work: Callable[[], Any], runs: int = 5) -> float:
        """Median over `runs` of the slowest process, which all begin together."""
        work()
        times = []
        for _ in range(runs):
            self.wait()
            dist.barrier()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(self.worst((time.perf_counter() - start) * 1e3)[0])
        return median(times)

    def begin_peak(self) -> None:
        """Forget the peak of memory."""
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """The peak of memory since then, GiB, on the process that has most."""
        return self.worst(torch.cuda.max_memory_allocated() / 2**30)[0] if self.gpu else None


class Laps:
    """Seconds between marks, by events of the device: a lap does not wait for the one before."""

    def __init__(self, world: World) -> None:
        self.world, self.marks = world, list[Any]()

    def mark(self) -> None:
        """Now."""
        if not self.world.gpu:
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """Of each lap."""
        self.world.wait()
        pairs = pairwise(self.marks)
        return [a.elapsed_time(b) / 1e3 if self.world.gpu else b - a for a, b in pairs]


def relative(mine: Tensor, true: Tensor) -> float:
    """How far a tensor is off, relative to the norm of the true one."""
    a, b = (x.detach().double() for x in (mine, true))
    return float((a - b).norm() / b.norm().clamp(min=1e-30))
