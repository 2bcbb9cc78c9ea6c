"""Small mistakes in the exchange are seen by the comparison with one process: 1e-5 means something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.masks import DOCUMENT, Packed, Window
from hf_longctx.parallel import Layout, softmax
from hf_longctx.parallel.blocks import RankBlock
from hf_longctx.parallel.halo import HaloExchange
from hf_longctx.parallel.ring import RingExchange
from hf_longctx.parallel.ulysses import UlyssesExchange

from .cases import MASKS, Case, errors, on_a_rank
from .pool import Pool


def documents_merged() -> AbstractContextManager[Any]:
    return patch.object(Packed, "pairs", lambda self, q, k: self.inside.pairs(q % DOCUMENT, k % DOCUMENT))


def window_one_longer() -> AbstractContextManager[Any]:
    return patch.dict(MASKS, window=Window(12))


@contextmanager
def halo_one_shorter() -> Iterator[None]:
    halo, slots = Layout.halo, HaloExchange.slots
    with (
        patch.object(Layout, "halo", lambda self, rank, window: halo(self, rank, window - 1)),
        patch.object(HaloExchange, "slots", lambda self: slots(self).clamp(min=0)),  # another key takes its place
    ):
        yield


def larger_lse_for_the_merged() -> AbstractContextManager[Any]:
    right = softmax.merge_into

    def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
        larger = torch.maximum(lse, part_lse)
        right(out, lse, part, part_lse)
        lse.copy_(larger)

    return patch.object(softmax, "merge_into", merge)


def one_key_missing() -> AbstractContextManager[Any]:
    right = RingExchange._arriving

    def arriving(self: RingExchange, other: int) -> RankBlock | None:
        block = right(self, other)
        if block is None or self.rank != 1:
            return block
        columns = block.columns
        fewer = slice(columns.start, columns.stop - 1) if isinstance(columns, slice) else columns[:-1]
        positions = replace(block.positions, k_pos_BS=block.positions.k_pos_BS[:, :-1], segments=None)
        return replace(block, columns=fewer, positions=positions)

    return patch.object(RingExchange, "_arriving", arriving)


def gradient_not_returned() -> AbstractContextManager[Any]:
    right = UlyssesExchange._heads_for_rows

    def heads_for_rows(self: UlyssesExchange, x: Tensor, heads: Any) -> list[Tensor]:
        return [x.detach() * (len(heads) == 1 or self.peers.rank == 0) for x in right(self, x, heads)]

    return patch.object(UlyssesExchange, "_heads_for_rows", heads_for_rows)


def mutated(case: Case, mistake: Any) -> dict[str, Any]:
    with mistake():
        return on_a_rank(case)


@pytest.mark.parametrize(
    ("mistake", "kind", "mask"),
    [
        (documents_merged, "ring", "causal"),
        (documents_merged, "gather", "full"),
        (documents_merged, "ulysses", "window"),
        (window_one_longer, "ring", "window"),
        (halo_one_shorter, "gather", "window"),
        (larger_lse_for_the_merged, "ring", "causal"),
        (one_key_missing, "ring", "causal"),
        (gradient_not_returned, "ulysses", "causal"),
    ],
)
def test_a_mistake_is_seen(two: Pool, mistake: Any, kind: str, mask: str) -> None:
    case = Case("packed odd", kind, (9, 3), mask)
    off = errors(case, two.run(mutated, case, mistake))
    assert max(off.values()) > 1e-2, off
    assert max(errors(case, two.run(on_a_rank, case)).values()) < 1e-5
