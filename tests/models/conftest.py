"""A stock model with a method, what it gives, and the dual-mode folder of it, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import LMInfinite, models
from tests.tiny import logits_of, text, tiny, tokenizer

METHOD = LMInfinite(n_global=2, n_local=6)
KEY = {"version": 1, "methods": [METHOD.spec()]}
IDS = text(2, 24)


@dataclass(frozen=True)
class Folders:
    """One model as a stock folder and as a dual-mode one, and what it gives as stock and under METHOD."""

    stock: Path
    dual: Path
    plain: Tensor
    extended: Tensor
    plain_tokens: Tensor
    tokens: Tensor


def tokens_of(model: Any) -> Tensor:
    """Greedy tokens, of cached steps."""
    generated: Tensor = model.generate(IDS, max_new_tokens=6, do_sample=False)
    return generated


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The stock class with `METHOD.apply` gives what everything here is compared with."""
    here = tmp_path_factory.mktemp("models")
    model = tiny("llama")
    model.save_pretrained(here / "stock")
    plain, plain_tokens = logits_of(model, IDS), tokens_of(model)
    METHOD.apply(model)
    extended, tokens = logits_of(model, IDS), tokens_of(model)
    assert not torch.equal(plain, extended)
    assert not torch.equal(plain_tokens, tokens)
    ours = models.LongCtxLlamaForCausalLM.from_pretrained(here / "stock", methods=METHOD)
    ours.save_pretrained(here / "dual")
    for folder in ("stock", "dual"):
        tokenizer().save_pretrained(here / folder)
    return Folders(here / "stock", here / "dual", plain, extended, plain_tokens, tokens)
