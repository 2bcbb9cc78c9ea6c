"""What a recorded CUDA graph is made of: its nodes by kind, and how long its launch holds the host.

A straight line of kernels is launched in about the same time however many there are. Copies and fills among them, and
branches, are launched one by one.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any
from unittest import mock

import torch

KINDS = ("kernel", "memcpy", "memset")  # of CUgraphNodeType 0 to 2


@contextmanager
def replays() -> Iterator[list[float]]:
    """Seconds that each replay of a graph inside the block holds the host."""
    seconds: list[float] = []
    replay = torch.cuda.CUDAGraph.replay

    def timed(graph: Any) -> None:
        start = perf_counter()
        replay(graph)
        seconds.append(perf_counter() - start)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", timed):
        yield seconds


def recorded_nodes(record: Callable[[], None]) -> dict[str, int] | None:
    """The nodes of the graph that `record` records last, as `nodes` has them; None where they cannot be had.

    torch before 2.8 does not keep graphs, and not every system has a driver that tells.
    """
    made: list[Any] = []
    graph = torch.cuda.CUDAGraph

    def kept() -> Any:
        made.append(graph(keep_graph=True))
        return made[-1]

    try:
        with mock.patch.object(torch.cuda, "CUDAGraph", kept):
            record()
        return nodes(made[-1].raw_cuda_graph(), ctypes.CDLL("libcuda.so.1")) if made else None
    except Exception as error:  # of torch, the driver or ctypes: no benchmark is to end for this
        print(f"the nodes of a recorded graph are not told: {type(error).__name__}: {error}")
        return None


def nodes(graph: int, driver: Any) -> dict[str, int]:
    """How many nodes of each kind a graph has, and its branches: edges beyond those of a straight line.

    Args:
        graph: Its handle.
        driver: CUDA's driver library.
    """

    def call(name: str, *args: Any) -> None:
        error = getattr(driver, name)(*args)
        if error:
            raise RuntimeError(f"{name} returned {error}")

    handle, count, edges, kind = ctypes.c_void_p(graph), ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_int()
    call("cuGraphGetNodes", handle, None, ctypes.byref(count))
    held = (ctypes.c_void_p * count.value)()
    call("cuGraphGetNodes", handle, held, ctypes.byref(count))
    call("cuGraphGetEdges", handle, None, None, ctypes.byref(edges))
    kinds: Counter[str] = Counter()
    for node in held:
        call("cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(kind))
        kinds[KINDS[kind.value] if kind.value < len(KINDS) else "other"] += 1
    return {name: kinds[name] for name in (*KINDS, "other")} | {"branches": edges.value - max(count.value - 1, 0)}
