"""Copies to host memory beside what a device computes: what waits for what, with CUDA's streams replaced."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hf_longctx.cache import Store, to_host
from hf_longctx.cache.growing import Growing
from hf_longctx.cache.store_row import StoreRow
from tests.contract.registry import same

from .test_store import FIRST, N, columns, equal, tokens

CARD = torch.device("cuda", 0)


class Work:
    """Copies that a stream has begun, and runs when it is waited for: as late as it may."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.current = Stream(self)


class Stream:
    def __init__(self, work: Work) -> None:
        self.work, self.queue, self.cuda_stream = work, list[Any](), len(work.streams)
        work.streams.append(self)

    def wait_stream(self, other: Stream) -> None:
        other.run(len(other.queue))

    def wait_event(self, event: tuple[Stream, int]) -> None:
        event[0].run(event[1])

    def record_event(self) -> tuple[Stream, int]:
        return self, len(self.queue)

    def synchronize(self) -> None:
        self.run(len(self.queue))

    def run(self, stop: int) -> None:
        for n, copy in enumerate(self.queue[:stop]):
            if copy is not None:
                self.queue[n] = None
                copy()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    made = Work()
    copy_, on = torch.Tensor.copy_, made.current

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        nonlocal on
        before, on = on, chosen
        yield
        on = before

    def later(self: torch.Tensor, new: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if on is made.current:
            return copy_(self, new)
        assert non_blocking
        assert self.is_contiguous()
        assert new.is_contiguous()
        on.queue.append(lambda: copy_(self, new))
        return self

    monkeypatch.setattr(to_host, "_SIDES", {})
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(made))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.current)
    monkeypatch.setattr(torch.Tensor, "copy_", later)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    # tensors of the CPU stand for those of a GPU
    monkeypatch.setattr(Growing, "join", lambda self: self.on_host and to_host.join(CARD))
    monkeypatch.setattr(Growing, "wait", lambda self: self.join())
    copy, join = to_host.copy, to_host.join
    monkeypatch.setattr(to_host, "join", lambda device: join(CARD))
    monkeypatch.setattr(to_host, "copy", lambda page, start, stop, new: copy(page, start, stop, On(new)))
    monkeypatch.setattr("hf_longctx.cache.growing.PIECE", 16)
    return made


class On:
    """A tensor that says it is on a GPU."""

    device = CARD

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.x.to(*args, **kwargs)


@pytest.mark.parametrize("size", [1, 5, 16, 37])
def test_what_is_read_is_what_was_written_however_late_it_is_copied(size: int, work: Work) -> None:
    text = tokens(2)
    stores = [Store([StoreRow(FIRST, on_host=on_host) for _ in range(2)]) for on_host in (False, True)]
    for start in range(0, N, size):
        for store in stores:
            store.append(columns(text, start, min(start + size, N)), False)
        side = to_host._SIDES[CARD, work.current.cuda_stream]
        assert len(side.begun) <= to_host.BEHIND
        if start == 5 * size:
            for store in stores:
                store.select([1, 0, 1])
                store.select([2, 1])
    for one, other in zip(*(store.rows for store in stores), strict=True):
        equal(one, other)
    for n in (3, 200):
        table = torch.randint(0, N, (2, stores[0].heads, 2, n), generator=torch.Generator().manual_seed(n))
        for mine, its in zip(*(store.take(table) for store in stores), strict=True):
            same(mine, its)


def test_nothing_waits_until_some_more_have_begun_or_somebody_reads(work: Work) -> None:
    pages = torch.zeros(6, 2, 16, 4)
    sources = torch.randn(6, 2, 16, 4)
    for n in range(6):
        new = sources[n].clone()
        to_host.copy(pages[n], 0, 16, new)
        new.zero_()  # what attention does with its own is nobody's business
    side = to_host._SIDES[CARD, work.current.cuda_stream]
    assert [len(x.queue) for x in work.streams] == [0, 6], "whole pages at once, on one stream beside"
    assert [bool(page.any()) for page in pages] == [True, True] + [False] * 4
    held = [weakref.ref(source) for _, source in side.begun]
    to_host.join_all()
    same(pages, sources)
    assert [ref() for ref in held] == [None] * 4, "their memory is free again"
    part = torch.randn(2, 5, 4)
    to_host.copy(pages[0], 3, 8, part)
    assert len(work.streams[1].queue) == 8, "a run for each head"
    to_host.join(torch.device("cpu"))
    same(pages[0, :, 3:8], part)
    same(pages[0, :, :3], sources[0, :, :3])


def test_another_stream_has_one_of_its_own_beside_it(work: Work) -> None:
    page, new = torch.zeros(2, 16, 4), torch.randn(2, 16, 4)
    to_host.copy(page, 0, 16, new)
    first, work.current = work.current, Stream(work)
    to_host.join(CARD)
    assert not page.any(), "it has nothing to do with that one"
    other = torch.zeros(2, 16, 4)
    to_host.copy(other, 0, 16, 2 * new)
    assert len(to_host._SIDES) == 2
    to_host.join(CARD)
    same(other, 2 * new)
    work.current = first
    to_host.join(CARD)
    same(page, new)
