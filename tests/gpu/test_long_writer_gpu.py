"""Answers written on a card: a replayed graph, with either way to attend, writes what the plain computation does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.long_writer import grouped
from recipes.long_writer.decode import write

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("long", [1, 10**9])
def test_answers_are_those_of_a_forward(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unequal prompts: each token is the likeliest one of a forward over what stands before it."""
    monkeypatch.setattr(grouped, "LONG", long)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=96, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=4096, attn_implementation="sdpa",
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).cuda().eval()
    prompts = [torch.randint(3, 64, (length,)).tolist() for length in (5, 700, 90)]
    found = write(model, prompts, [300, 200, 250], {2}, tokens_at_once=10**6)
    for prompt, one in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + one.ids], device="cuda")).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(one.ids, device="cuda")[:, None])[:, 0]
        torch.testing.assert_close(chosen, logits.amax(-1), rtol=0, atol=2e-3)  # sums in another order
