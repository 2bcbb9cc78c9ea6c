"""Shared prefixes on a GPU: folded and fused attention against plain float64, and graphs against eager decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import shared_prefix
from hf_longctx.ops.prefix import PrefixKeys, PrefixQuery, SuffixKeys, attend, fused, fused_unsupported_reason, merged
from tests.sharing.prefixes import DOCUMENT, GREEDY, IDS, LOGITS, MASK
from tests.tiny import left_padded, text, tiny

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}  # of the whole tensor's norm
SHAPES = [((9, 3), 64, torch.bfloat16), ((8, 1), 128, torch.bfloat16), ((4, 4), 256, torch.bfloat16),
          ((6, 2), 80, torch.float32)]  # fmt: skip


def problem(
    B: int, L: int, heads: tuple[int, int], D: int, lengths: tuple[int, ...], dtype: Any, window: int | None
) -> tuple[Any, Any]:
    """The same in `dtype` and in float64: a row with padding in front, and empty columns behind a single token."""
    (H, G), S, P = heads, 41, sum(lengths)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda").to(dtype)

    empty = 6 if L == 1 else 0
    pos = (P + torch.arange(S, device="cuda")).expand(B, S).clone()
    at = pos[:, S - empty - L : S - empty].clone()
    if empty:
        pos[:, -empty:] = -1
    pos[0, :3] = -1
    q, k, v = random(B, H, L, D), random(B, G, S, D), random(B, G, S, D)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    levels = [(random(1, G, n, D), random(1, G, n, D), torch.arange(n, device="cuda")[None] + start)
              for n, start in zip(lengths, starts, strict=True)]  # fmt: skip

    def given(to: Any) -> Any:
        query = PrefixQuery(q.to(to), at, window, D**-0.5)
        own = SuffixKeys(k.to(to), v.to(to), pos, consecutive=empty == 0, padded=True)
        return query, own, [PrefixKeys(a.to(to), b.to(to), p) for a, b, p in levels]

    return given(dtype), given(torch.float64)


def off(ours: Tensor, truth: Tensor) -> float:
    assert ours.isfinite().all()
    return float((ours.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize(("heads", "dim", "dtype"), SHAPES, ids=str)
@pytest.mark.parametrize("lengths", [(1,), (4099,), (300, 777)], ids=str)
def test_one_token_a_row(lengths: tuple[int, ...], heads: tuple[int, int], dim: int, dtype: Any) -> None:
    for window in (None, 500):
        asked, exact = problem(5, 1, heads, dim, lengths, dtype, window)
        truth = merged(*exact, kernel="reference")
        assert fused_unsupported_reason(*asked[:2]) is None
        for parts in (None, 1, 3) if window is None and min(lengths) > 3 else (None,):
            assert off(fused(*asked, parts=parts), truth) <= TOLERANCE[dtype], (window, parts)


@pytest.mark.parametrize(("heads", "dim", "dtype"), SHAPES, ids=str)
def test_questions(heads: tuple[int, int], dim: int, dtype: Any) -> None:
    asked, exact = problem(5, 7, heads, dim, (1500, 33), dtype, None)
    assert off(attend(*asked), merged(*exact, kernel="reference")) <= TOLERANCE[dtype]


def test_many_rows_fill_the_card() -> None:
    """As many rows as are cut into parts by the default, and a prefix that no number of parts divides."""
    asked, exact = problem(1024, 1, (9, 3), 64, (4099,), torch.bfloat16, None)
    some = slice(None, None, 100)
    query, own, levels = exact
    fewer = PrefixQuery(query.q_BHLD[some], query.pos_BL[some], None, query.scale)
    truth = merged(
        fewer, SuffixKeys(own.k_BGSD[some], own.v_BGSD[some], own.pos_BS[some], False, True), levels, "reference"
    )
    assert off(attend(*asked)[some], truth) <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_generation_from_a_graph_gives_stocks_tokens(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longctx.generation import cuda_graph as graphs

    recorded: list[Any] = []
    record = graphs._record
    monkeypatch.setattr(graphs, "_record", lambda *a: (recorded.append(record(*a)), recorded[-1])[1])
    monkeypatch.setattr("hf_longctx.sharing.layers.ROOM", 12)  # it grows, and is recorded anew
    model = tiny(family).cuda()
    settings: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}
    rows = [torch.cat([DOCUMENT, row[m.bool()]]) for row, m in zip(IDS, MASK, strict=True)]
    ids, mask = (t.cuda() for t in left_padded(rows))
    stock = model.generate(ids, attention_mask=mask, **settings)[:, -30:]
    with shared_prefix(model, DOCUMENT) as prefix:
        asked = IDS.cuda(), MASK.cuda()
        graph = prefix.generate(asked[0], attention_mask=asked[1], **settings, **LOGITS)
        assert len(recorded) >= 2
        assert all(one.graph is not None for one in recorded)
        eager = prefix.generate(asked[0], attention_mask=asked[1], disable_compile=True, **settings, **LOGITS)
        beams = prefix.generate(asked[0], attention_mask=asked[1], num_beams=3, **GREEDY)
        plain = prefix.generate(asked[0], attention_mask=asked[1], num_beams=3, disable_compile=True, **GREEDY)
    assert torch.equal(graph.sequences[:, -30:], stock)
    assert torch.equal(eager.sequences, graph.sequences)
    torch.testing.assert_close(torch.stack(graph.logits), torch.stack(eager.logits), atol=1e-4, rtol=1e-4)
    assert torch.equal(beams, plain)


def test_a_cache_dies_with_its_generate() -> None:
    """Its buffers and its graph's memory are given back."""
    model, questions = tiny().cuda().bfloat16(), text(256, 9).cuda()
    with shared_prefix(model, DOCUMENT) as prefix:
        held = []
        for _ in range(3):
            prefix.generate(questions, **GREEDY)
            torch.cuda.empty_cache()
            held.append(torch.cuda.memory_reserved())
    assert held[2] <= held[0]
