"""Attention among two GPUs by NCCL and the kernels for GPUs: `pytest tests/gpu/test_parallel_gpu.py` on two of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hf_longctx.parallel import attention
from tests.parallel.cases import MASKS, SCALE, Case, errors, inputs, on_a_rank, ranks_of
from tests.parallel.pool import Pool

pytestmark = [pytest.mark.gpu, pytest.mark.dist]

KINDS = ["ring", "gather", "ulysses"]
PACKED = ["dense odd", "packed odd", "short whole", "rank without rows"]
# of the norm. bf16 rounds q, k, v and the gradient to 8 bits before anything is computed, and once more what comes out
TOLERANCE = 1.6e-2


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(2, tmp_path_factory.mktemp("cards"), "nccl")
    yield pool
    pool.close()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [(9, 3), (32, 8), (8, 8)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", PACKED)
def test_two_cards_are_one_process(cards: Pool, pack: str, kind: str, heads: tuple[int, int], mask: str) -> None:
    for dtype, most in ((torch.bfloat16, TOLERANCE), (torch.float32, 1e-5)):
        case = Case(pack, kind, heads, mask, dtype, device="cuda")
        off = errors(case, cards.run(on_a_rank, case))
        assert max(off.values()) < most, (dtype, off)


@pytest.mark.parametrize("mask", ["causal", "window", "full"])
@pytest.mark.parametrize("outside", ["ring", "gather"])
@pytest.mark.parametrize("inner", [1, 2])
def test_a_mesh_of_two_cards(cards: Pool, inner: int, outside: str, mask: str) -> None:
    case = Case("packed odd", "hybrid", (9, 3), mask, torch.bfloat16, inner, outside, "cuda")
    off = errors(case, cards.run(on_a_rank, case))
    assert max(off.values()) < TOLERANCE, off


def without_waiting(case: Case) -> dict[str, Any]:
    """Two layers, of which the second may not make the host wait for the device."""
    ranks = ranks_of(case, dist.get_world_size())
    ranks.prepare(MASKS[case.mask])
    places = ranks.layout.places[ranks.rank]
    q, k, v, grad = inputs(case)
    q, k, v = (x[:, :, places].cuda().requires_grad_() for x in (q, k, v))
    grad = grad[:, places].cuda()
    for mode in ("default", "error"):  # the first one loads kernels and opens connections
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            out, _ = attention(q, k, v, ranks, scale=SCALE, inside=MASKS[case.mask])
            out.backward(grad)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {}


@pytest.mark.parametrize("mask", ["causal", "window"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_does_not_wait_for_the_device(cards: Pool, kind: str, mask: str) -> None:
    cards.run(without_waiting, Case("short whole", kind, (9, 3), mask, torch.bfloat16, device="cuda"))
