"""A branch whose output was computed for its log-sum-exp: the softmax is the same to the bit, and computes it once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import CodeLookup
from hf_longctx.ops.attend import attend, attended, log_sum_exp
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import KERNELS
from hf_longctx.ops.masks import BeyondWindow, Window
from hf_longctx.ops.positions import Positions
from tests.tiny import logits_of, text, tiny

B, H, G, D = 2, 4, 2, 16
GIVEN: dict[str, Any] = {"scale": 0.3, "kernel": "auto", "strict": False}


def branches(queries: int, keys: int, width: int = D) -> list[Branch]:
    """A window, and the first keys beyond it."""
    random = torch.Generator().manual_seed(keys)

    def some(heads: int, count: int, dim: int = D) -> Tensor:
        return torch.randn(B, heads, count, dim, generator=random)

    q, pos = some(H, queries), torch.arange(keys).expand(B, -1)
    k, v = some(G, keys), some(G, keys, width)
    at = {"padded": False, "same_rows": False, "consecutive": True}
    there = [Positions(pos[:, -queries:], pos[:, part], **at) for part in (slice(None), slice(3))]
    window = Branch(q, k, v, there[0], Window(5))
    return [window, Branch(q, k[:, :, :3], v[:, :, :3], there[1], BeyondWindow(5))]


@pytest.mark.parametrize("queries", [1, 7, 19])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("sinks", [False, True])
@torch.no_grad()
def test_the_softmax_is_the_same_to_the_bit(queries: int, softcap: float | None, sinks: bool) -> None:
    window, first = branches(queries, 19)
    sink = torch.linspace(-1, 1, H) if sinks else None
    known = attended(window, **GIVEN, softcap=softcap)
    assert known.done is not None
    assert torch.equal(log_sum_exp(known, **GIVEN, softcap=softcap), log_sum_exp(window, **GIVEN, softcap=softcap))
    for one, other in (([window, first], [known, first]), ([window], [known])):
        known.done[0].copy_(attended(window, **GIVEN, softcap=softcap).done[0])  # type: ignore[index]
        known.done[1].copy_(attended(window, **GIVEN, softcap=softcap).done[1])  # type: ignore[index]
        true = attend(one, **GIVEN, softcap=softcap, sink_H=sink)
        assert torch.equal(attend(other, **GIVEN, softcap=softcap, sink_H=sink), true)


@torch.no_grad()
def test_it_may_stand_anywhere_among_the_others() -> None:
    window, first = branches(7, 19)
    true = attend([first, window], **GIVEN)
    torch.testing.assert_close(attend([first, attended(window, **GIVEN)], **GIVEN), true, atol=1e-6, rtol=1e-6)


def test_where_it_cannot_be_known_the_branch_is_as_it_was() -> None:
    window, _ = branches(7, 19)
    assert attended(window, **GIVEN) is window, "gradients may flow"
    with torch.no_grad():
        for other in (
            branches(7, 19, width=8)[0],
            replace(window, k_BGSD=window.k_BGSD[:, :, :0], v_BGSD=window.v_BGSD[:, :, :0]),
            replace(window, lowered_BL=torch.zeros(B, 7)),
        ):
            assert attended(other, **GIVEN) is other


def test_the_gate_attends_to_the_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is read with look-ups, against the same with gradients, which computes all anew."""
    model, ids, calls = tiny(num_hidden_layers=3), text(2, 90), Counter[tuple[str, str]]()
    for name, kernel in KERNELS.items():

        def forward(call: Any, *qkv: Tensor, name: str = name, own: Any = kernel.forward) -> Any:
            calls[name, type(call.mask).__name__] += 1
            return own(call, *qkv)

        monkeypatch.setattr(kernel, "forward", forward)
    with CodeLookup(n_global=2, n_local=16, top_k=3, shortlist=8).on(model):
        model(ids[:, :20])  # looks at the layers
        calls.clear()
        once = logits_of(model, ids)
        found = {mask: n for (_, mask), n in calls.items()}
        assert found["Window"] == 3, calls
        assert found["TopKeys"] == 3, calls
        calls.clear()
        with torch.enable_grad():
            twice = model(ids).logits
        assert sum(n for (_, mask), n in calls.items() if mask == "Window") == 6, calls
    assert torch.equal(once, twice)
