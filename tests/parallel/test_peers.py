"""Exchanges among ranks, each against what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longctx.parallel.peers import Peers

from .pool import Pool


def rows(rank: int, count: int = 3) -> Tensor:
    return torch.arange(count * 2.0).view(count, 2) + 100 * rank


def shifted_twice() -> list[list[float]]:
    """Two shifts in flight at a time, waited for in the other order."""
    peers = Peers()
    first, second = peers.shift(rows(peers.rank), tag=0), peers.shift(-rows(peers.rank), tag=1)
    return [second().flatten().tolist(), first().flatten().tolist()]


def gathered(ahead: bool) -> list[float]:
    peers = Peers()
    return peers.gather(rows(peers.rank), ahead)().flatten().tolist()


def summed(scattered: bool) -> list[float] | str:
    peers = Peers()
    x = torch.cat([rows(rank) for rank in range(peers.size)]) * (peers.rank + 1)
    try:
        return (peers.reduce_scatter(x) if scattered else peers.scatter_sum(x)).flatten().tolist()
    except RuntimeError as error:
        return str(error)


def exchanged(ahead: bool) -> list[float]:
    """Rank r sends r rows to rank 0, and one to each other rank."""
    peers = Peers()
    send = [peers.rank, *[1] * (peers.size - 1)]
    receive = list(range(peers.size)) if peers.rank == 0 else [1] * peers.size
    return peers.exchange(rows(peers.rank, sum(send)), send, receive, ahead)().flatten().tolist()


def test_shifts_go_once_around(four: Pool) -> None:
    for rank, (second, first) in enumerate(four.run(shifted_twice)):
        before = rows((rank - 1) % 4)
        assert first == before.flatten().tolist()
        assert second == (-before).flatten().tolist()


@pytest.mark.parametrize("ahead", [False, True])
def test_all_ranks_rows_in_the_order_of_ranks(four: Pool, ahead: bool) -> None:
    assert four.run(gathered, ahead) == [torch.cat([rows(rank) for rank in range(4)]).flatten().tolist()] * 4


@pytest.mark.parametrize("scattered", [False, True])
def test_sums_are_scattered(four: Pool, scattered: bool) -> None:
    for rank, found in enumerate(four.run(summed, scattered)):
        if isinstance(found, str):
            assert scattered
            pytest.skip(f"this torch's gloo: {found}")
        assert found == (rows(rank) * 10).flatten().tolist()


@pytest.mark.parametrize("ahead", [False, True])
def test_as_many_rows_as_are_said(four: Pool, ahead: bool) -> None:
    found = four.run(exchanged, ahead)
    assert found[0] == torch.cat([rows(rank, rank) for rank in range(4)]).flatten().tolist()
    for rank in (1, 2, 3):
        parts = [rows(source, source + 3)[source + rank - 1] for source in range(4)]
        assert found[rank] == torch.cat(parts).tolist()


def test_a_rank_alone_needs_no_processes() -> None:
    peers = Peers(alone=True)
    assert (peers.rank, peers.size) == (0, 1)
