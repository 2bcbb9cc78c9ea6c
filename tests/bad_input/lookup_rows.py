"""Rows at the edges of a look-up: padding only, one token, and a text that its window holds."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from hf_longctx import LongContextMethod
from tests.contract.registry import close
from tests.tiny import logits_in_parts, logits_of, text, tiny


def check_rows(looking: LongContextMethod, wide: LongContextMethod) -> None:
    """Rows are what they are alone under `looking`, and stock under `wide`, whose window is 24 tokens."""
    model, mask = tiny(), torch.ones(3, 24, dtype=torch.long)
    mask[0], mask[1, :23] = 0, 0
    ids = text(3, 24)
    with looking.on(model):
        got = logits_in_parts(model, ids, (20, 21, 24), DynamicCache(), mask)
        assert torch.isfinite(got).all()
        close(got[1, -1:], logits_of(model, ids[1:2, -1:])[0])
        close(got[2], logits_of(model, ids[2:])[0])
    stock = logits_of(model, ids)
    with wide.on(model):
        close(logits_of(model, ids), stock)
