"""Answers written on a card: a replayed graph, with either way to attend, writes what the plain computation does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.long_writer import decode, grouped
from recipes.long_writer.batching import rounded
from recipes.long_writer.decode import write
from recipes.long_writer.step import Step

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kernel", [True, False])
def test_answers_are_those_of_a_forward(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unequal prompts: each token is the likeliest one of a forward over what stands before it.

    The cache is copied when it is full, and when rows have ended.
    """
    copied, going_on = list[int](), Step.going_on

    def noted(self: Step, row_N: torch.Tensor, columns: int) -> Step:
        copied.append(columns)
        return going_on(self, row_N, columns)

    monkeypatch.setattr(Step, "going_on", noted)
    monkeypatch.setattr(decode, "_next", lambda read: rounded(read + 1))
    monkeypatch.setattr(decode, "FIXED", 8)
    if not kernel:
        monkeypatch.setattr(grouped, "has_kernel", lambda branch: False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=96, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=4096, attn_implementation="sdpa",
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).cuda().eval()
    prompts = [torch.randint(3, 64, (length,)).tolist() for length in (5, 700, 90)]
    asked = list[bool]()
    stock = grouped.has_kernel
    monkeypatch.setattr(grouped, "has_kernel", lambda branch: asked.append(stock(branch)) or asked[-1])
    found = write(model, prompts, [300, 200, 100], {2}, tokens_at_once=10**6)
    assert set(asked) == {kernel}
    assert len(copied) > 1
    for prompt, one in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + one.ids], device="cuda")).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(one.ids, device="cuda")[:, None])[:, 0]
        torch.testing.assert_close(chosen, logits.amax(-1), rtol=0, atol=2e-3)  # sums in another order
