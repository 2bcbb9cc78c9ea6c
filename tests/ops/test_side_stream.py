"""Kernels beside each other while a graph is recorded: who waits for whom, without a GPU."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.ops.kernels import side_stream
from hf_longctx.ops.kernels.side_stream import forked
from tests.ops.side_streams import FORK, JOIN, Streams

X = torch.zeros(1)


def test_the_second_stream_waits_first_and_is_waited_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    for _ in range(2):  # as in the layers of a model: the second waits for all of the first
        with forked(X) as beside:
            with beside:
                streams.note("parts")
            streams.note("choose")
        streams.note("merge")
    assert streams.notes == 2 * [FORK, "parts on side", "choose on main", JOIN, "merge on main"]


def test_it_is_joined_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    with pytest.raises(ValueError, match="in between"), forked(X):
        raise ValueError("in between")
    assert streams.notes == [FORK, JOIN]


def test_there_is_one_stream_outside_of_recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    monkeypatch.setattr(side_stream, "recording", lambda x: False)
    with forked(X) as beside:
        with beside:
            streams.note("parts")
        streams.note("choose")
    assert streams.notes == ["parts on main", "choose on main"]


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert not side_stream.recording(X)
