"""The sums, each against a count by hand or by a loop."""

from __future__ import annotations

import pytest

from hf_longctx.planning import account


@pytest.mark.parametrize("before", [0, 1, 5, 40])
@pytest.mark.parametrize("queries", [1, 7, 30])
@pytest.mark.parametrize("span", [None, 1, 6, 100])
def test_causal_pairs_are_those_of_a_loop(before: int, queries: int, span: int | None) -> None:
    loop = sum(min(i + 1, span or i + 1) for i in range(before, before + queries))
    assert account.causal_pairs(before, queries, span) == loop


def test_chunks_have_the_pairs_of_the_whole() -> None:
    whole = account.causal_pairs(0, 1000, 64)
    assert sum(account.causal_pairs(start, 100, 64) for start in range(0, 1000, 100)) == whole


def test_smollm2_by_hand() -> None:
    # 3 key heads of 64 in bf16, 30 layers: 23,040 bytes a token
    assert 30 * account.kv_token_bytes(3, 64, 2) == 23_040
    assert account.kept_tokens(10_000, 4_105) == 4_105
    assert account.mlp_phase_token_bytes(576, 1536, 64, 2) == 2 * (4 * 576 + 3 * 1536 + 128) + 8 == 14_088
    assert account.weight_bytes(134_515_008, 2) == 269_030_016
    assert account.matmul_flops(106_168_320, 131_072) == pytest.approx(27.83e12, rel=1e-3)
    pairs = account.causal_pairs(0, 131_072, None)
    assert 30 * account.attention_flops(pairs, 9, 64) == pytest.approx(593.8e12, rel=1e-3)


def test_masks_and_repeated_keys_cost_nothing_where_there_are_none() -> None:
    assert account.repeated_kv_bytes(1000, 8, 8, 64, 2) == 0
    assert account.repeated_kv_bytes(1000, 9, 3, 64, 2) == 1000 * 2 * 9 * 64 * 2
    assert account.mask_bytes(10, 2) == 30


def test_lookups_grow_with_keys_and_then_with_queries() -> None:
    few = account.lookup_bytes(256, 10**6, 9, 64, 5, 2)
    assert account.lookup_bytes(1024, 10**6, 9, 64, 5, 2) == few, "one block of queries at a time"
    assert account.lookup_bytes(2**20, 1000, 9, 64, 5, 2) > account.lookup_bytes(2**19, 1000, 9, 64, 5, 2)
    whole, pieces = (account.lookup_bytes(8192, 1000, 9, 64, 2175, 2, in_pieces=p) for p in (False, True))
    chosen = 8192 * 2175 * 9
    assert whole == chosen * (64 * 8 + 8)
    assert pieces == 2**26 * 8 + chosen * 8, "keys of some queries at a time, and where all of them are"
