"""What the benchmark tells of a recorded CUDA graph, and that nothing ends where it cannot be told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recipes.benchmarks.graph_nodes import nodes, recorded_nodes, replays


class Driver:
    """Answers as CUDA's driver does for a graph of these types of nodes, and so many edges."""

    def __init__(self, kinds: list[int], edges: int) -> None:
        self.kinds, self.edges = kinds, edges

    def cuGraphGetNodes(self, graph: Any, into: Any, count: Any) -> int:
        assert graph.value == 77
        count._obj.value = len(self.kinds)
        if into is not None:
            for at in range(len(into)):
                into[at] = 1000 + at
        return 0

    def cuGraphGetEdges(self, graph: Any, start: Any, end: Any, count: Any) -> int:
        count._obj.value = self.edges
        return 0 if self.edges < 100 else 999

    def cuGraphNodeGetType(self, node: Any, kind: Any) -> int:
        kind._obj.value = self.kinds[node.value - 1000]
        return 0


def test_nodes_are_counted_by_kind_and_edges_beyond_a_line() -> None:
    # kernels, two copies, a fill, and an event: CUgraphNodeType 0, 1, 2 and 7
    assert nodes(77, Driver([0, 0, 1, 0, 2, 7, 1, 0], 7)) == {
        "kernel": 4, "memcpy": 2, "memset": 1, "other": 1, "branches": 0,
    }  # fmt: skip
    assert nodes(77, Driver([0, 0, 0], 3))["branches"] == 1
    assert nodes(77, Driver([], 0)) == {"kernel": 0, "memcpy": 0, "memset": 0, "other": 0, "branches": 0}
    with pytest.raises(RuntimeError, match="cuGraphGetEdges returned 999"):
        nodes(77, Driver([0], 100))


def test_a_benchmark_goes_on_where_nodes_cannot_be_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Old:
        """Of a torch that keeps no graphs."""

    assert recorded_nodes(lambda: None) is None  # nothing was recorded
    assert not capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Old)
    assert recorded_nodes(lambda: torch.cuda.CUDAGraph() and None) is None
    assert "not told: TypeError" in capsys.readouterr().out
    assert torch.cuda.CUDAGraph is Old


def test_the_graph_that_is_recorded_last_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        made: list[Any] = []  # noqa: RUF012

        def __init__(self, keep_graph: bool = False) -> None:
            self.keep_graph = keep_graph
            self.made.append(self)

        def raw_cuda_graph(self) -> int:
            assert self is self.made[-1]
            assert self.keep_graph
            return 77

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver([0, 0], 1))
    found = recorded_nodes(lambda: [torch.cuda.CUDAGraph() for _ in range(2)] and None)
    assert found == {"kernel": 2, "memcpy": 0, "memset": 0, "other": 0, "branches": 0}


def test_each_replay_is_timed_and_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        replayed = 0

        def replay(self) -> None:
            self.replayed += 1

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    graph = Graph()
    with replays() as seconds:
        graph.replay()
        graph.replay()
    graph.replay()
    assert graph.replayed == 3
    assert len(seconds) == 2
    assert min(seconds) >= 0
