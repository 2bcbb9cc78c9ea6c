"""Frozen position rows stay bit for bit, whatever moves weights; the others train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_longctx.clip import FrozenRows, stretch_positions
from tests.clip.tiny import clip, texts


def step(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    model.get_text_features(input_ids=texts(60, 90, padded=90)).pooler_output.square().sum().backward()
    optimizer.step()


def table_of(model: Any) -> torch.nn.Parameter:
    (table,) = [
        weight
        for name, weight in model.named_parameters()
        if name.endswith("text_model.embeddings.position_embedding.weight")
    ]
    return table


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adam fused"])
def test_rows_stay_under_decay_and_old_momentum(kind: str) -> None:
    model = stretch_positions(clip())
    weights = model.text_model.parameters()
    optimizer: Any = {
        "adamw": lambda: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.5),
        "sgd": lambda: torch.optim.SGD(weights, lr=1e-2, momentum=0.9, weight_decay=0.5),
        "adam fused": lambda: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.5, fused=True),
    }[kind]()
    step(model, optimizer)  # fills the momentum of all rows
    table = table_of(model)
    before = table.detach().clone()
    with FrozenRows(model, optimizer) as frozen:
        assert frozen.keep == 20  # stretching's mark
        step(model, optimizer)
        assert torch.equal(table.grad[:20], torch.zeros_like(table.grad[:20]))  # type: ignore[index]
        step(model, optimizer)
    assert torch.equal(table[:20], before[:20])
    assert (table[20:] != before[20:]).all()
    step(model, optimizer)
    assert not torch.equal(table[:20], before[:20])  # removed


def test_keep_follows_the_stretching_and_may_be_given() -> None:
    model = stretch_positions(clip(), keep=7, ratio=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    assert FrozenRows(model, optimizer).keep == 7
    assert FrozenRows(model, optimizer, keep=0).keep == 0


def test_works_under_adapters() -> None:
    model = stretch_positions(clip())
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    table = table_of(adapted)
    before = table.detach().clone()
    with pytest.raises(ValueError, match="does not train"):
        FrozenRows(adapted, torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad]))
    table.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    FrozenRows(adapted, optimizer)
    step(adapted, optimizer)
    assert torch.equal(table[:20], before[:20])
    assert not torch.equal(table[20:], before[20:])


def test_wrong_use_is_told() -> None:
    model = clip()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="keep=78: expected 0 to 77"):
        FrozenRows(model, optimizer, keep=78)
    stretch_positions(model)
    with pytest.raises(ValueError, match="Stretch first, then make the optimizer"):
        FrozenRows(model, optimizer)
