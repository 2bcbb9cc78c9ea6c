"""What runs beside other kernels in a CUDA graph waits for what was before it, and is waited for. Without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hf_longctx.ops.kernels import beside as module
from hf_longctx.ops.kernels.beside import beside

CARD = torch.device("cuda", 0)


class Stream:
    """One that notes who waits for whom."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.cuda_stream, self.name, self.told = id(self), name, told

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    noted: list[str] = []
    made, current = iter(["side", "another"]), Stream("main", noted)

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        noted.append(f"to {stream.name}")
        yield
        noted.append(f"from {stream.name}")

    monkeypatch.setattr(module, "_SIDES", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(next(made), noted))
    monkeypatch.setattr(torch.cuda, "stream", on)
    return noted


def work(told: list[str], device: torch.device) -> None:
    with beside(device) as join:
        told.append("window")
    told.append("look-up")
    join()
    told.append("merge")


def test_in_a_graph_it_begins_after_what_was_before_and_ends_before_what_reads_it(told: list[str]) -> None:
    in_order = ["side waits for main", "to side", "window", "from side", "look-up", "main waits for side", "merge"]
    for _ in range(2):
        work(told, CARD)
    assert told == 2 * in_order, "each layer in turn, on one stream beside"


@pytest.mark.parametrize(("device", "capturing"), [(CARD, False), (torch.device("cpu"), True)])
def test_elsewhere_all_runs_in_order(
    told: list[str], device: torch.device, capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    work(told, device)
    assert told == ["window", "look-up", "merge"]


def test_what_fails_inside_leaves_the_other_stream(told: list[str]) -> None:
    def fails() -> Any:
        raise ValueError("a kernel is not compiled")

    with pytest.raises(ValueError, match="not compiled"), beside(CARD):
        fails()
