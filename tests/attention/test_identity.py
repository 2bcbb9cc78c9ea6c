"""The rotation that does nothing: exact, without computing, and plain wherever that cannot be seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partial
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as halves

from hf_longctx.attention.identity import Ones, Zeros, identity, unrotated
from tests.tiny import tiny


def test_queries_and_keys_come_back_as_they_are_whatever_the_layout() -> None:
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    for rotate, width in ((halves, 8), (interleaved, 8), (partial, 4)):
        cos, sin = identity((torch.randn(2, 5, width), torch.randn(2, 5, width)))
        q_out, k_out = rotate(q, k, cos, sin)
        assert torch.equal(q_out, q)
        assert torch.equal(k_out, k)
        assert type(q_out) is torch.Tensor


def test_products_that_cannot_be_skipped_are_computed() -> None:
    one, zero = identity((torch.randn(1, 3, 8), torch.randn(1, 3, 8)))
    assert isinstance(one, Ones)
    assert isinstance(zero, Zeros)
    half = torch.randn(1, 8, dtype=torch.bfloat16)
    assert (one * half).dtype == torch.float32  # as torch promotes
    assert (half + zero).dtype == torch.float32
    small = torch.randn(1)
    assert (small * one).shape == one.shape
    assert torch.equal((small + zero) - small, torch.zeros(1, 1, 8))
    assert type(one - 1) is torch.Tensor
    x = torch.randn(1, 1, 8)
    assert (x * one) is x
    assert torch.equal(x * zero + 1, torch.ones(1, 1, 8))


def test_gradients_pass() -> None:
    x = torch.randn(1, 2, 3, 8, requires_grad=True)
    cos, sin = identity((torch.randn(1, 3, 8), torch.randn(1, 3, 8)))
    halves(x, x, cos, sin)[0].sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_models_forward_skips_the_identity_and_rotates_by_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def counted(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        calls.append(cos)
        return halves(q, k, cos, sin)

    unrotated.cache_clear()
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", counted)
    model = tiny()
    layer, hidden = model.model.layers[0].self_attn, torch.randn(1, 5, model.config.hidden_size)
    turn = model.model.rotary_emb(hidden, torch.arange(5)[None])
    forward = unrotated(type(layer).forward)
    still = identity(turn)
    skipped = forward(layer, hidden, position_embeddings=still, attention_mask=None)[0]
    assert not calls
    torch.testing.assert_close(skipped, layer(hidden, position_embeddings=still, attention_mask=None)[0])
    assert torch.equal(
        forward(layer, hidden, position_embeddings=turn, attention_mask=None)[0],
        layer(hidden, position_embeddings=turn, attention_mask=None)[0],
    )
    assert not torch.equal(skipped, layer(hidden, position_embeddings=turn, attention_mask=None)[0])
    assert modeling_llama.apply_rotary_pos_emb is counted
    unrotated.cache_clear()


def test_forwards_that_rotate_otherwise_are_left_alone() -> None:
    def forward(x: int) -> int:
        return x + 1

    assert unrotated(forward) is forward
    assert unrotated(torch.relu) is torch.relu
