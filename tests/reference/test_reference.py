"""The references agree with themselves and, where nothing is changed, with the stock models."""

from __future__ import annotations

import pytest
import torch

from tests.reference.lm_infinite import attention_all_pairs, attention_of_one_head, inverse_frequencies, logit, rotated
from tests.reference.model import lm_infinite_by_brute_force
from tests.rope.cases import STATIC, scaled_by_hand
from tests.tiny import FAMILIES, MORE_FAMILIES, logits_of, text, tiny


def test_rotating_both_gives_the_distance() -> None:
    q, k = torch.randn(2, 8, dtype=torch.float64)
    freq = inverse_frequencies(1e4, 8)
    both = rotated(q, 31, freq) @ rotated(k, 12, freq) / 8**0.5
    torch.testing.assert_close(both, logit(q, k, 19, freq), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top_k", [0, 3, 99])
@pytest.mark.parametrize(("n_global", "n_local"), [(2, 5), (0, 1), (7, 3), (1, 40)])
def test_loops_and_matrix_agree(n_global: int, n_local: int, top_k: int) -> None:
    q, k, v = torch.randn(3, 23, 8, dtype=torch.float64)
    args = q, k, v, inverse_frequencies(1e4, 8), n_global, n_local, top_k
    torch.testing.assert_close(attention_of_one_head(*args), attention_all_pairs(*args), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", ["stock", *STATIC])
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_brute_force_without_a_limit_is_the_stock_model(family: str, row: str) -> None:
    model, ids = tiny(family) if row == "stock" else scaled_by_hand(family, row), text(2, 19)
    stock = logits_of(model, ids)
    with lm_infinite_by_brute_force(model, n_global=0, n_local=1000):
        brute = logits_of(model, ids, use_cache=False)
    torch.testing.assert_close(brute, stock, rtol=1e-5, atol=1e-5)  # fp32 rounding of O(3) logits
    if row != "stock":
        assert (stock - logits_of(tiny(family), ids)).abs().max() > 1e-3, "the scaling changed nothing"
