"""Attention of many rows to one prefix against the softmax over prefix and suffix together, pair by pair."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_longctx.ops import prefix as folded
from hf_longctx.ops.prefix import PrefixKeys, PrefixQuery, SuffixKeys, _parts, attend, cut

D = 8


def problem(B: int, L: int, heads: tuple[int, int], lengths: tuple[int, ...], window: int | None) -> tuple:
    """Queries, suffixes with padding in front of one row, and the levels of a prefix."""
    (H, G), S, P = heads, 9, sum(lengths)
    q, (k, v) = torch.randn(B, H, L, D), torch.randn(2, B, G, S, D).unbind()
    pos = (P + torch.arange(S)).expand(B, S).clone()
    pos[0, :3] = -1
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    levels = [
        PrefixKeys(*torch.randn(2, 1, G, n, D).unbind(), torch.arange(n)[None] + start)
        for n, start in zip(lengths, starts, strict=True)
    ]
    return PrefixQuery(q, pos[:, -L:], window, D**-0.5), SuffixKeys(k, v, pos, True, True), levels


def truth(query: PrefixQuery, own: SuffixKeys, levels: list[PrefixKeys]) -> Tensor:
    B, H = query.q_BHLD.shape[:2]
    keys, values = (
        torch.cat([*(x.expand(B, -1, -1, -1) for x in shared), mine], 2).repeat_interleave(H // mine.shape[1], 1)
        for shared, mine in (
            ([s.k_1GPD for s in levels], own.k_BGSD),
            ([s.v_1GPD for s in levels], own.v_BGSD),
        )
    )
    at = torch.cat([*(s.pos_1P.expand(B, -1) for s in levels), own.pos_BS], 1)
    distance = query.pos_BL[:, :, None] - at[:, None]
    seen = (at >= 0)[:, None] & (distance >= 0) & (distance < (query.window or 10**6))
    scores = (query.q_BHLD.double() @ keys.double().transpose(-1, -2)) * query.scale
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    return (weights @ values.double()).transpose(1, 2)


@pytest.mark.parametrize("v_dim", [5, 12])
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("window", [None, 20])
def test_values_of_another_width_than_keys(window: int | None, tokens: int, v_dim: int) -> None:
    query, own, levels = problem(3, tokens, (6, 2), (16, 31), window)
    own = replace(own, v_BGSD=torch.randn(3, 2, 9, v_dim))
    levels = [replace(level, v_1GPD=torch.randn(1, 2, level.pos_1P.shape[1], v_dim)) for level in levels]
    true = truth(query, own, levels)
    for kernel in ("auto", "reference"):
        out = attend(query, own, levels, kernel)
        assert out.shape == (3, tokens, 6, v_dim)
        real = query.pos_BL >= 0
        torch.testing.assert_close(out[real].double(), true[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("lengths", [(37,), (1,), (), (16, 0, 31)], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_values(
    parts: int, tokens: int, heads: tuple[int, int], lengths: tuple[int, ...], window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """However a prefix is cut: also where its length is no multiple, and where it has fewer keys than parts."""

    def asked(query: PrefixQuery, shared: PrefixKeys) -> int:
        return 1 if query.window is not None else min(parts, shared.k_1GPD.shape[2])

    monkeypatch.setattr(folded, "parts_for", asked)
    given = problem(3, tokens, heads, lengths, window)
    # fp32 sums of a few dozen terms
    torch.testing.assert_close(attend(*given).double(), truth(*given), rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(attend(*given, kernel="reference").double(), truth(*given), rtol=2e-5, atol=2e-6)


def test_cutting_copies_no_key() -> None:
    _, _, (shared,) = problem(1, 1, (6, 2), (37,), None)
    parts, rest = cut(shared, 4)
    assert parts.k_1GPD.shape == (2, 4, 9, D)
    assert parts.k_1GPD.data_ptr() == shared.k_1GPD.data_ptr()
    assert rest is not None
    assert rest.pos_1P.tolist() == [[36]]
    assert cut(shared, 1)[1] is None


@pytest.mark.parametrize("tiles", [1, 3, 64, 72, 132, 200])
@pytest.mark.parametrize("keys", [1, 100, 2048, 16384, 100_003])
def test_parts_are_few_and_long(tiles: int, keys: int) -> None:
    parts = _parts(tiles, keys, 132)
    assert 1 <= parts <= max(1, keys // 256)
    waves = -(-tiles * parts // 132)
    assert waves * keys / parts <= 1.2 * (-(-tiles // 132)) * keys  # never much longer than uncut
    if tiles < 66 and keys >= 16384:
        # most of the card works, or parts are as short as they may be
        assert tiles * parts / (waves * 132) > 0.7 or parts == keys // 256


def test_a_card_that_is_full_anyhow_needs_no_parts() -> None:
    assert _parts(10_000, 16384, 132) == 1
