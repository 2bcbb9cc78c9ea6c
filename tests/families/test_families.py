"""Attention methods on tiny models of many families: served ones bit for bit, the others refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_longctx
from hf_longctx import LMInfinite, PositionFree
from hf_longctx.attention.state import STATE
from tests.contract.registry import close, differs, fingerprint, same
from tests.families.table import DOCUMENT, FAMILIES, REFUSED, SERVED, model_of, render
from tests.tiny import left_padded, logits_of, text

IDS = text(2, 24)
ROWS = [text(1, length, seed=length)[0] for length in (9, 17, 26)]
SETTINGS = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
WINDOW = LMInfinite(n_global=2, n_local=6)


@pytest.mark.parametrize("family", SERVED)
def test_unrotated_keys_give_the_stock_model_bit_for_bit(family: str) -> None:
    model = model_of(family)
    ids, mask = left_padded(ROWS)
    before, stock = fingerprint(model), logits_of(model, IDS)
    generated = model.generate(ids, attention_mask=mask, **SETTINGS)
    with PositionFree().on(model):
        same(logits_of(model, IDS), stock, "prefill")
        ours = model.generate(ids, attention_mask=mask, **SETTINGS)
    same(ours.sequences, generated.sequences)
    same(torch.stack(ours.logits), torch.stack(generated.logits), "left-padded generation")
    same(logits_of(model, IDS), stock, "after undo")
    assert fingerprint(model) == before


@pytest.mark.parametrize("family", SERVED)
def test_a_window_gives_rows_alone_and_cached_as_uncached(family: str) -> None:
    model = model_of(family)
    ids, mask = left_padded(ROWS)
    stock = logits_of(model, IDS)
    WINDOW.apply(model)
    differs(logits_of(model, IDS), stock)
    batch = model.generate(ids, attention_mask=mask, **SETTINGS)
    for i, row in enumerate(ROWS):
        new = batch.sequences[i, -SETTINGS["max_new_tokens"] :]
        whole = logits_of(model, torch.cat([row, new])[None], use_cache=False)[0, len(row) - 1 : -1]
        close(torch.stack(batch.logits)[:, i], whole, f"row {i} alone and uncached")
        same(new, whole.argmax(-1), f"row {i}")


@pytest.mark.parametrize("family", REFUSED)
def test_refused_with_the_reason_and_nothing_left_behind(family: str) -> None:
    model = model_of(family)
    before, stock = fingerprint(model), logits_of(model, IDS)
    with pytest.raises(ValueError, match=re.escape(FAMILIES[family].refused or "")) as caught:
        PositionFree().apply(model)
    assert "\n" not in str(caught.value)
    assert fingerprint(model) == before
    assert not hf_longctx.applied(model)
    same(logits_of(model, IDS), stock)


@pytest.mark.parametrize(("family", "rotates"), [("cohere2", False), ("exaone4", False), ("olmo3", True)])
def test_a_loaded_model_knows_its_layers_without_rotation_before_its_first_forward(
    family: str, rotates: bool, tmp_path: Path
) -> None:
    model = model_of(family)
    WINDOW.apply(model)
    ours = logits_of(model, IDS)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert vars(loaded.model)[STATE].rope == {1: rotates}
    with torch.no_grad():
        compiled = torch.compile(loaded, fullgraph=True, backend="eager")
        close(compiled(IDS, use_cache=False).logits, ours, "compiled before anything was run")
    same(logits_of(loaded, IDS), ours)


@pytest.mark.parametrize("family", ["cohere2", "olmo3"])
def test_an_offloaded_model_learns_which_layers_rotate_in_its_first_forward(family: str) -> None:
    with WINDOW.on(model_of(family)) as model:
        ours = logits_of(model, IDS)
    model = accelerate.cpu_offload(model_of(family), execution_device=torch.device("cpu"))
    with WINDOW.on(model):
        assert vars(model.model)[STATE].rope == {}
        same(logits_of(model, IDS), ours)


def test_the_document_lists_every_family() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "run `make tables`"
