"""Which kernel does which work here, and how long each takes: `hf-longctx kernels` prints it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..masks import BeyondWindow, Causal, Full, Mask, Window
from ..positions import Positions
from . import KERNELS, Call, Kernel, choose

WINDOW, FIRST = 4096, 10
ENOUGH = 1000.0  # milliseconds of a kernel; what is slow needs no five tries
SHAPES: dict[str, tuple[int, int, Mask]] = {  # queries, keys, which pairs exist
    "the whole text from its start": (1, 1, Causal()),
    "a chunk and the window before it": (1, 2, Window(WINDOW)),
    "the first tokens, for a chunk": (1, 0, BeyondWindow(WINDOW)),
    "one new token and its window": (0, 1, Window(WINDOW)),
    "the queries of many rows, and a shared prefix": (1, 1, Full()),
}


@dataclass(frozen=True)
class KernelRow:
    """One kernel for one kind of work: is it chosen, or only by name, why can it not do it, and what does it take?"""

    work: str
    kernel: str
    chosen: bool
    by_name: bool
    refused: str | None
    milliseconds: float | None


def table(
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    chunk: int = 8192,
    heads: tuple[int, int] = (32, 8),
    head_dim: int = 128,
    timed: bool = True,
) -> Iterator[KernelRow]:
    """Every kernel on every kind of work, on `device`, for heads of queries and of keys and values; timed or not."""
    generator = torch.Generator(device).manual_seed(0)

    def random(count: int, length: int) -> Tensor:
        shape = 1, count, length, head_dim
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    for work, (many, keys, mask) in SHAPES.items():
        L, S = chunk if many else 1, {0: FIRST, 1: chunk if many else WINDOW, 2: chunk + WINDOW}[keys]
        q, k, v = random(heads[0], L), random(heads[1], S), random(heads[1], S)
        k_pos = torch.arange(S, device=device)[None]
        q_pos = torch.arange(L, device=device)[None] + (S - L if keys else 2 * WINDOW)
        positions = Positions(q_pos, k_pos, same_rows=keys > 0 and L == S, consecutive=keys > 0, padded=False)
        call = Call(positions, mask, head_dim**-0.5)
        best = choose(call, q, k)
        for kernel in KERNELS.values():
            reason = kernel.unsupported_reason(call, q, k) or kernel.slower_reason(call, q, k)
            taken = None if reason is not None or kernel.by_name or not timed else _time(kernel, call, q, k, v)
            yield KernelRow(work, kernel.name, kernel is best, kernel.by_name, reason, taken)


def _time(kernel: Kernel, call: Call, q: Tensor, k: Tensor, v: Tensor) -> float | None:
    """Median milliseconds by the clock, of five tries at most; None where the memory does not suffice."""

    def once() -> float:
        start = time.perf_counter()
        kernel.forward(call, q, k, v)
        if q.is_cuda:
            torch.cuda.synchronize(q.device)
        return (time.perf_counter() - start) * 1e3

    try:
        once()
        taken: list[float] = []
        while len(taken) < 5 and sum(taken) < ENOUGH:
            taken.append(once())
        return median(taken)
    except torch.OutOfMemoryError:
        return None
