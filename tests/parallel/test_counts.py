"""What travels, counted at torch's functions: how many exchanges, and how many bytes of each rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hf_longctx.parallel import attention
from hf_longctx.parallel.exchange import Exchange

from .cases import ALL_GATHER, DIM, MASKS, SCALE, Case, counted, errors, inputs, on_a_rank, ranks_of
from .pool import Pool

H, G = 9, 3
SHIFT, REDUCE, EXCHANGE = "batch_isend_irecv", "all_reduce", "all_to_all_single"
ROW = G * 2 * DIM * 4  # bytes of a key and its value, in fp32


def count(case: Case) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The bytes that this rank sends in a forward and in a backward pass."""
    ranks = ranks_of(case, dist.get_world_size())
    places = ranks.layout.places[ranks.rank]
    q, k, v, grad = inputs(case)
    q, k, v = (x[:, :, places].requires_grad_() for x in (q, k, v))
    with counted() as forward:
        out, _ = attention(q, k, v, ranks, scale=SCALE, inside=MASKS[case.mask])
    with counted() as backward:
        out.backward(grad[:, places])
    return forward, backward


@pytest.mark.parametrize("pack", ["dense odd", "short whole", "rank without rows", "fewer tokens than ranks"])
def test_ring_sends_keys_and_their_gradients_once_around(two: Pool, four: Pool, pack: str) -> None:
    case = Case(pack, "ring", (H, G), "causal")
    for pool in (two, four):
        layout = case.layout(pool.size)
        longest = max(map(len, layout.shared_rows))
        hops = [longest * ROW] * (pool.size - 1)
        for forward, backward in pool.run(count, case):
            if pack == "rank without rows":
                assert forward == backward == {}, "a document of one token is on one rank"
            else:
                assert forward == {SHIFT: hops}
                assert backward == {SHIFT: hops * 2}


@pytest.mark.parametrize("pack", ["dense odd", "short whole", "fewer tokens than ranks"])
def test_gather_takes_one_exchange_and_one_sum(two: Pool, four: Pool, pack: str) -> None:
    case = Case(pack, "gather", (H, G), "causal")
    for pool in (two, four):
        longest = max(map(len, case.layout(pool.size).shared_rows))
        for forward, backward in pool.run(count, case):
            assert forward == {ALL_GATHER: [longest * ROW]}
            assert backward == {REDUCE: [longest * ROW * pool.size]}, "the keys that came in the forward are kept"


def test_only_rows_of_cut_documents_travel(two: Pool) -> None:
    case = Case("short whole", "ring", (H, G), "causal")
    layout = case.layout(2)
    assert {layout.lengths[document] for document in layout.shared} == {37, 61}
    ((forward, _), _) = two.run(count, case)
    assert forward == {SHIFT: [49 * ROW]}, "(37 + 61) / 2 rows, not the 73 of a rank"


@pytest.mark.parametrize("mask", ["causal", "window", "full"])
@pytest.mark.parametrize("kind", ["ring", "gather"])
def test_whole_documents_exchange_nothing(two: Pool, four: Pool, kind: str, mask: str) -> None:
    for pool in (two, four):
        assert pool.run(count, Case("all whole", kind, (H, G), mask)) == [({}, {})] * pool.size


@pytest.mark.parametrize("kind", ["ring", "gather"])
def test_a_window_sends_the_keys_before_each_piece_only(two: Pool, four: Pool, kind: str) -> None:
    case = Case("dense odd", kind, (H, G), "window")
    for pool in (two, four):
        answers = pool.run(count, case)
        for forward, backward in answers:
            assert forward.keys() == backward.keys() == {EXCHANGE}
            assert len(forward[EXCHANGE]) == 1
            assert len(backward[EXCHANGE]) == 1, "the keys that came in the forward are kept"
        sent = sum(forward[EXCHANGE][0] for forward, _ in answers)
        # the chunks' borders within a document, but not the one in the middle, whose sides are on the same rank
        assert sent == (2 * pool.size - 2) * 10 * ROW
        assert sent == sum(backward[EXCHANGE][0] for _, backward in answers), "each key's gradient comes back"


def test_ulysses_sends_a_head_to_those_who_read_it(two: Pool) -> None:
    layout = Case("packed odd", "ulysses", (H, G), "causal").layout(2)
    for rank, (forward, backward) in enumerate(two.run(count, Case("packed odd", "ulysses", (H, G), "causal"))):
        rows, every = layout.sizes[rank], layout.starts[-1]
        own = [4, 5][rank]  # query heads; the second key head is read by both ranks, so each reads two
        out, lse, kv = DIM * 4, 4, 2 * 2 * DIM * 4
        assert forward == {EXCHANGE: [rows * (H * out + 2 * kv), every * own * (out + lse)]}
        assert backward == {EXCHANGE: [rows * (3 * H * out + 2 * kv), every * (own * out + kv)]}


def recomputed(case: Case, keep: bool | None) -> tuple[int, int, dict[str, Any]]:
    """Forwards and exchanges of attention under checkpointing, and what it finds."""
    forwards = 0
    ranks = ranks_of(case, dist.get_world_size())
    exchange = ranks.exchange(MASKS[case.mask])
    plain = exchange.forward

    def watched(*args: Any) -> Any:
        nonlocal forwards
        forwards += 1
        return plain(*args)

    exchange.forward = watched  # type: ignore[method-assign]
    places = ranks.layout.places[ranks.rank]
    q, k, v, grad = inputs(case)
    q, k, v = (x[:, :, places].requires_grad_() for x in (q, k, v))

    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = attention(q * 2, k * 1, v * 1, ranks, scale=SCALE / 2, inside=MASKS[case.mask])
        return out * 1, lse

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = keep and "flash_attn" in str(op)  # as TRL's selective checkpointing finds what it keeps
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    selective = {} if keep is None else {"context_fn": lambda: create_selective_checkpoint_contexts(policy)}
    with counted() as sent:
        out, lse = checkpoint(layer, q, k, v, use_reentrant=False, **selective)
        out.backward(grad[:, places])
    found = {"out": out, "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    arrays = {name: x.detach().numpy() for name, x in found.items() if x is not None}
    return forwards, sum(map(len, sent.values())), arrays


@pytest.mark.parametrize(("kind", "forward", "backward"), [("ring", 1, 2), ("gather", 1, 2), ("ulysses", 2, 3)])
def test_kept_attention_is_not_computed_again(two: Pool, kind: str, forward: int, backward: int) -> None:
    case = Case("packed odd", kind, (H, G), "causal")
    for keep, times in ((False, 2), (True, 1)):
        answers = two.run(recomputed, case, keep)
        for forwards, exchanges, _ in answers:
            assert forwards == times
            assert exchanges == forward * times + backward
        assert max(errors(case, [found for _, _, found in answers]).values()) < 1e-5


@pytest.mark.parametrize(("kind", "exchanges"), [("ring", 2 * 1 + 2), ("gather", 2 * 1 + 1), ("ulysses", 2 * 2 + 2)])
def test_full_recomputation_keeps_gathered_keys_for_the_backward_pass(two: Pool, kind: str, exchanges: int) -> None:
    case = Case("packed odd", kind, (H, G), "causal")
    answers = two.run(recomputed, case, None)
    assert [answer[:2] for answer in answers] == [(2, exchanges)] * 2
    assert max(errors(case, [found for _, _, found in answers]).values()) < 1e-5


def test_blocks_are_made_once_for_all_layers(two: Pool) -> None:
    assert two.run(blocks_of_two_layers) == [(True, 1)] * 2


def blocks_of_two_layers() -> tuple[bool, int]:
    case = Case("packed odd", "gather", (H, G), "causal")
    ranks = ranks_of(case, 2)
    exchange: Exchange = ranks.exchange(MASKS["causal"])
    places = ranks.layout.places[ranks.rank]
    q, k, v, _ = inputs(case)
    seen = set()
    for _ in range(2):
        attention(q[:, :, places], k[:, :, places], v[:, :, places], ranks, scale=SCALE)
        seen.add(id(exchange.blocks[1]))
    return ranks.exchange(MASKS["causal"]) is exchange, len(seen)


def test_the_default_mask_is_causal(two: Pool) -> None:
    case = Case("packed odd", "ring", (H, G), "causal")
    assert max(errors(case, two.run(on_a_rank, case)).values()) < 1e-5
