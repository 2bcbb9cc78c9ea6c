"""Layouts of packs: seeded random ones of any lengths, on 1 to 8 ranks, against definitions written a second time."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_longctx.ops.masks import DOCUMENT
from hf_longctx.parallel.layout import Layout

SEEDS = range(200)


def some_pack(seed: int) -> tuple[list[int], int, str | int]:
    """Lengths, ranks and what is cut."""
    rng = random.Random(seed)
    mu, sigma, most = rng.choice([(0.5, 1.0, 40), (3.0, 1.5, 40), (8.0, 1.2, 12), (9.5, 1.0, 3)])
    lengths = [int(rng.lognormvariate(mu, sigma)) for _ in range(rng.randrange(most + 1))]
    return lengths, 1 + seed % 8, rng.choice(["balance", "balance", "all", 1, 64, 4096])


def cost(layout: Layout, rank: int) -> float:
    """In pairs of attention: 18.2 us a token, 2.32 ns a pair."""
    positions = layout.codes(rank) % DOCUMENT
    return 18.2e-6 / 2.32e-9 * len(positions) + float((positions + 1).sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_every_token_is_on_one_rank_and_the_inverse_is_one(seed: int) -> None:
    lengths, ranks, cut = some_pack(seed)
    layout = Layout.of(lengths, ranks, cut)
    rows = torch.cat(layout.places)
    assert torch.equal(rows.sort().values, torch.arange(sum(lengths)))
    assert torch.equal(rows[layout.inverse_T], torch.arange(sum(lengths)))
    codes = [torch.arange(n) + document * DOCUMENT for document, n in enumerate(lengths)]
    assert torch.equal(layout.codes_T, torch.cat([*codes, torch.empty(0, dtype=torch.int64)]))
    for rank, places in enumerate(layout.places):
        assert (places.diff() > 0).all()
        assert layout.sizes[rank] == len(places)
        assert (layout.owners_T[places] == rank).all()
        assert torch.equal(layout.codes(rank), layout.codes_T[places])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_cut_and_what_travels(seed: int) -> None:
    lengths, ranks, cut = some_pack(seed)
    layout = Layout.of(lengths, ranks, cut)
    documents = [layout.codes(rank) // DOCUMENT for rank in range(ranks)]
    holders = torch.cat([torch.empty(0, dtype=torch.int64), *(held.unique() for held in documents)]).tolist()
    assert layout.shared == {document for document in holders if holders.count(document) > 1}
    shared = torch.tensor(sorted(layout.shared), dtype=torch.int64)
    for held, rows in zip(documents, layout.shared_rows, strict=True):
        assert torch.equal(rows, torch.isin(held, shared).nonzero()[:, 0])
    least = {"all": 1, "balance": None}.get(cut, cut)
    if least is not None and ranks > 1:
        assert all(lengths[document] >= least for document in layout.shared)
        # two tokens can be the last chunk from the front and the last from the back, which one rank holds
        assert all(document in layout.shared or n < max(least, 3) for document, n in enumerate(lengths))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_default_is_balanced_and_cuts_few(seed: int) -> None:
    lengths, ranks, _ = some_pack(seed)
    layout = Layout.of(lengths, ranks)
    costs = [cost(layout, rank) for rank in range(ranks)]
    mean = sum(costs) / ranks
    longest = max(lengths, default=0)
    if max(costs) > 1.0201 * mean:  # tokens are not divisible: nothing that is cut otherwise is better
        assert sum(lengths) < 400 * ranks, "a token more or less cannot be 2 % here"
        everything = Layout.of(lengths, ranks, "all")
        assert max(costs) <= max(cost(everything, rank) for rank in range(ranks))
    cut = [lengths[document] for document in layout.shared]
    whole = [n for document, n in enumerate(lengths) if document not in layout.shared]
    assert not cut or min(cut) >= max((n for n in whole if n > 1), default=0), "the longest are cut"
    if cut and longest > 1 and max(costs) <= 1.02 * mean:
        fewer = Layout.of(lengths, ranks, sorted(cut)[0] + 1)
        if len(fewer.shared) < len(cut):
            assert max(cost(fewer, rank) for rank in range(ranks)) > 1.0199 * mean, "fewer would have been enough"


def of_64k(seed: int) -> list[int]:
    """Documents of about 6k tokens, lognormal, which fill 64k."""
    rng, lengths = random.Random(seed), list[int]()
    while sum(lengths) < 65536:
        lengths.append(max(16, int(rng.lognormvariate(8.0, 1.2))))
    lengths[-1] -= sum(lengths) - 65536
    return lengths


def test_the_default_over_one_zigzag_of_the_whole_pack() -> None:
    """Pairs of attention of the slower of two ranks, over 20 packs; tokens and pairs are balanced to 2 %."""
    gains, cut = [], []
    for lengths in map(of_64k, range(20)):
        layout = Layout.of(lengths, 2)
        pairs_T = layout.codes_T % DOCUMENT + 1
        first, second, third, fourth = (int(chunk.sum()) for chunk in pairs_T.tensor_split(4))
        zigzag = max(first + fourth, second + third)
        gains.append(zigzag / max(int(pairs_T[places].sum()) for places in layout.places))
        cut.append(sum(lengths[document] for document in layout.shared) / 65536)
        costs = [cost(layout, rank) for rank in range(2)]
        assert max(costs) <= 1.02 * sum(costs) / 2
    assert sum(gains) / 20 >= 1.12
    assert max(gains) >= 1.35, "the best of twenty"
    assert sum(cut) / 20 <= 0.25


@pytest.mark.parametrize("seed", SEEDS[::5])
def test_halos_are_the_keys_that_a_window_lacks(seed: int) -> None:
    lengths, ranks, cut = some_pack(seed)
    layout = Layout.of([n % 97 for n in lengths], ranks, cut)
    for window in (1, 2, 7, 60, 1000):
        for rank in range(ranks):
            held = set(layout.codes(rank).tolist())
            seen = {key for code in held for key in range(max(code - window + 1, code // DOCUMENT * DOCUMENT), code)}
            assert set(layout.codes_T[layout.halo(rank, window)].tolist()) == seen - held


@pytest.mark.parametrize("seed", SEEDS[::5])
def test_groups_of_ranks_hold_what_their_ranks_hold(seed: int) -> None:
    lengths, _, cut = some_pack(seed)
    for size, groups in ((1, 3), (2, 2), (4, 1), (3, 2)):
        layout = Layout.of(lengths, size * groups, cut)
        grouped = layout.grouped(size)
        assert grouped.ranks == groups
        for group in range(groups):
            members = torch.cat(layout.places[group * size : group * size + size])
            assert grouped.places[group].tolist() == sorted(members.tolist())
    assert Layout.of([160, 24], 4, "all").grouped(2) == Layout.of([160, 24], 2, "all")


def test_a_zigzag_of_one_document() -> None:
    layout = Layout.of([16], 2, "all")
    assert [list(own) for own in layout.pieces] == [[(0, 0, 4), (0, 12, 16)], [(0, 4, 12)]]


def test_equal_input_gives_the_equal_layout() -> None:
    for seed in SEEDS:
        assert Layout.of(*some_pack(seed)) == Layout.of(*some_pack(seed))


def test_the_work_grows_as_the_documents_do() -> None:
    """Counted in function calls: no pair of documents is looked at."""
    rng = random.Random(0)
    lengths = [max(1, int(rng.lognormvariate(3.6, 1.0))) for _ in range(1000)]
    for ranks in (2, 8):
        half, whole = (calls(lambda n=n, ranks=ranks: made(lengths[:n], ranks)) for n in (500, 1000))
        assert whole < 2.5 * half


def made(lengths: list[int], ranks: int) -> Any:
    layout = Layout.of(lengths, ranks)
    return layout.places, layout.inverse_T, layout.shared_rows, layout.codes_T


def calls(work: Callable[[], Any]) -> int:
    """How many functions, of Python and of C, the work calls."""
    found = 0

    def count(_: Any, event: str, __: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (([3, -1], 2), r"lengths=\[3, -1\]: expected the tokens of each document"),
        (([3], 0), "ranks=0: expected 1 or more"),
        (([3], 2, 0), "cut=0: expected 'balance', 'all', or the fewest tokens"),
        (([3], 2, "some"), "cut='some': expected 'balance', 'all'"),
    ],
)
def test_wrong_settings_are_named(settings: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.of(*settings)


def test_groups_must_divide_the_ranks() -> None:
    with pytest.raises(ValueError, match="size=3: expected a divisor of the 4 ranks"):
        Layout.of([8], 4).grouped(3)
