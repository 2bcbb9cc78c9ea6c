"""What attention's backward holds on a rank, against the operators of `parallel/` with peers that send nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_longctx.ops.masks import Causal
from hf_longctx.parallel import gradients
from hf_longctx.parallel.blocks import RankBlock, RankResults, RankTensors
from hf_longctx.parallel.exchange import Exchange
from hf_longctx.parallel.gather import GatherExchange
from hf_longctx.parallel.hybrid import hybrid
from hf_longctx.parallel.layout import Layout
from hf_longctx.parallel.peers import Peers, Pending
from hf_longctx.parallel.ring import RingExchange
from hf_longctx.planning.train import TrainingRun
from hf_longctx.planning.train.exchange import WORKSPACE, attention_bytes
from recipes.far.counting import Counter

from .models import sizes

HEADS, KV_HEADS, DIM, TOKENS = 32, 8, 64, 65536
HALF = torch.bfloat16


class Silent(Peers):
    """Ranks of which only this one is there: what they send has the right size."""

    def __init__(self, size: int, rank: int) -> None:
        self.group, self.size, self.rank = None, size, rank

    def shift(self, x: Tensor, tag: int = 0) -> Pending:
        out = torch.empty_like(x)
        return lambda: out

    def gather(self, x: Tensor, ahead: bool = True) -> Pending:
        out = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        return lambda: out

    def scatter_sum(self, x: Tensor) -> Tensor:
        return x.new_empty(x.shape[0] // self.size, *x.shape[1:])

    def exchange(self, x: Tensor, send: Sequence[int], receive: Sequence[int], ahead: bool = True) -> Pending:
        out = x.new_empty(sum(receive), *x.shape[1:])
        return lambda: out


class Kernel:
    """One that returns gradients in the dtype of its inputs, as cuDNN does."""

    by_row = False

    def gradients(self, call: Any, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> list[Tensor]:
        return [torch.empty_like(x) for x in (q, k, v)]

    def backward(self, call: Any, *given: Tensor, into: Any) -> None:
        for buffer, x in zip(into, self.gradients(call, *given), strict=True):
            buffer += x


class ByRow(Kernel):
    """The same, row by row, as flash attention does."""

    by_row = True

    def gradients_rows(self, call: Any, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> list[Tensor]:
        return [torch.empty_like(x) for x in (q, k, v)]


def exchange(kind: str, layout: Layout, rank: int) -> Exchange:
    device, peers = torch.device("cpu"), Silent(layout.ranks, rank)
    if kind == "ulysses":
        found: Any = hybrid(layout, Silent(1, 0), peers, lambda of, by: RingExchange(of, by, Causal(), device))
        found._ragged(HEADS, KV_HEADS)  # looks at values
        return found
    return {"ring": RingExchange, "gather": GatherExchange}[kind](layout, peers, Causal(), device)


def held(kind: str, ranks: int, rank: int, ignoring: bool = False) -> int:
    layout = Layout.of([TOKENS], ranks)
    of, rows = exchange(kind, layout, rank), layout.sizes[rank]
    of.prepare()
    counter = Counter()
    with FakeTensorMode(allow_non_fake_inputs=True):
        out = torch.empty(1, rows, HEADS, DIM, dtype=HALF)
        # as projections give them, row by row
        q = torch.empty_like(out).transpose(1, 2)
        k = torch.empty(1, rows, KV_HEADS, DIM, dtype=HALF).transpose(1, 2)
        lse = torch.empty(1, HEADS, rows)
        v, grad = torch.empty_like(k), torch.empty_like(out)
        for x in (out, q, k, lse) if ignoring else ():
            counter.ignore(x)  # else it counts where a view of it is seen
        with counter:
            if ranks > 1:  # each rank has room for both once more: a kernel of several parts sums in fp32
                v, grad = torch.empty_like(k), torch.empty_like(out)
            _results = gradients.derive(of, RankTensors(q, k, v, 0.1), RankResults(grad, out, lse))
    return counter.peak


@pytest.mark.parametrize(
    ("kind", "ranks"), [("ring", 1), *((kind, ranks) for kind in ("ring", "gather", "ulysses") for ranks in (2, 4, 8))]
)
def test_the_rank_that_holds_most(kind: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RankBlock, "kernel", lambda *_: (None, Kernel()))
    most = max(held(kind, ranks, rank) for rank in {0, ranks - 1})
    said = attention_bytes(sizes(), TrainingRun(tokens=TOKENS, gpus=ranks, kind="auto" if ranks == 1 else kind))
    inside = WORKSPACE * HEADS * DIM * TOKENS / ranks  # the kernel's own, which is not counted here
    assert said - inside == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("kind", ["ring", "gather", "ulysses"])
def test_row_by_row_nothing_more_is_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 3):
        found = []
        for kernel in (Kernel(), ByRow()):
            monkeypatch.setattr(RankBlock, "kernel", lambda *_, kernel=kernel: (None, kernel))
            found.append(held(kind, 4, rank, ignoring=True))
        assert found[1] <= found[0]
