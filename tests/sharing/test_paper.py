"""A shared prefix against Hydragen as the paper writes it."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.sharing import shared_prefix
from tests.reference.hydragen import by_brute_force
from tests.sharing.prefixes import DOCUMENT, GREEDY, LOGITS, behind
from tests.tiny import logits_of, text, tiny


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "smollm3", "gpt_neox"])
def test_answers_are_those_of_the_paper(family: str) -> None:
    model = tiny(family)
    questions = text(3, 5, seed=2)
    with shared_prefix(model, DOCUMENT) as prefix:
        out = prefix.generate(questions, **GREEDY, **LOGITS)
    ids = behind(DOCUMENT, out.sequences)
    with by_brute_force(model, len(DOCUMENT)):
        expected = logits_of(model, ids, use_cache=False)
    got = torch.stack(out.logits, 1)
    # fp32 rounding of O(3) logits
    torch.testing.assert_close(got, expected[:, -len(out.logits) - 1 : -1], rtol=1e-5, atol=1e-5)
