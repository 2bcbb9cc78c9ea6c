"""The papers' rings, chunk by chunk, and ours agree, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.reference.light_seq import distributed_attention, schedule
from tests.reference.rsa import ring_self_attention

from .cases import PACKS, SCALE, Case, inputs, on_a_rank, truth, whole
from .pool import Pool

HEADS = (8, 8)
CHUNKS = [36, 35, 40, 30]  # any lengths, of one document of 141


def by_chunks(attention: Callable[[list[Tensor], list[Tensor], list[Tensor]], list[Tensor]]) -> dict[str, Tensor]:
    """A paper's attention of "dense odd", head by head, with its gradients by autograd."""
    q, k, v, grad = inputs(Case("dense odd", "", HEADS, "causal", torch.float64))
    for x in (q, k, v):
        x.requires_grad_()
    heads = []
    for head in range(HEADS[0]):
        chunks = [list(x[0, head].split(CHUNKS)) for x in (q, k, v)]
        heads.append(torch.cat(attention(*chunks)))
    out = torch.stack(heads, 1)[None]
    out.backward(grad)
    found = {"out": out, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {name: x.detach() for name, x in found.items() if x is not None}


def rsa_causal(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    return ring_self_attention(q, k, v, causal=True)


def light_seq(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    return distributed_attention(q, k, v)[0]


@pytest.mark.parametrize("kind", ["ring", "gather", "ulysses", "hybrid"])
@pytest.mark.parametrize(
    ("paper", "mask"), [(ring_self_attention, "full"), (rsa_causal, "causal"), (light_seq, "causal")]
)
def test_ours_is_the_papers(four: Pool, paper: Callable[..., list[Tensor]], mask: str, kind: str) -> None:
    assert SCALE == 8**-0.5, "the papers divide by the root of the head dim"
    assert sum(CHUNKS) == sum(PACKS["dense odd"][0])
    case = Case("dense odd", kind, HEADS, mask, torch.float64)
    ours = whole(case, four.run(on_a_rank, case))
    for name, x in by_chunks(paper).items():
        torch.testing.assert_close(ours[name], x, rtol=1e-10, atol=1e-12)


def test_the_papers_log_sum_exp_is_that_of_all_keys() -> None:
    q, k, v, _ = inputs(Case("dense odd", "", HEADS, "causal", torch.float64))
    for head in range(HEADS[0]):
        chunks = [list(x[0, head].split(CHUNKS)) for x in (q, k, v)]
        lse = torch.cat(distributed_attention(*chunks)[1])
        torch.testing.assert_close(lse, truth("dense odd", HEADS, "causal")["lse"][0, head], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("workers", range(1, 10))
def test_light_seqs_schedule_does_each_pair_of_chunks_once(workers: int) -> None:
    steps = schedule(workers)
    assert len(steps) == workers // 2 + 1
    done = [(query, key) for step in steps for _, query, key in step]
    assert sorted(done) == [(query, key) for query in range(workers) for key in range(query + 1)]
    for step in steps:
        assert len({work.worker for work in step}) == len(step)
        assert all(work.worker in (work.query, work.key) for work in step), "a worker has one side of its work"
