"""Attention methods on tiny models of many families: those that are served, and the others refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import hf_longctx
from hf_longctx import LMInfinite, PositionFree
from hf_longctx.attention.state import STATE, known_of
from tests.contract.registry import close, differs, fingerprint, same
from tests.families.census.looking import ROUNDING, distance
from tests.families.table import FAMILIES, REFUSED, SERVED, model_of
from tests.tiny import left_padded, logits_of, text

IDS = text(2, 24)
ROWS = [text(1, length, seed=length)[0] for length in (9, 17, 26)]
SETTINGS = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
WINDOW = LMInfinite(n_global=2, n_local=6)
TWO_LAYERS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}


def equal(family: str, ours: Tensor, stock: Tensor, why: str) -> None:
    """To the bit, or up to rounding where the row of a family says so."""
    if FAMILIES[family].rounds:
        assert distance(ours, stock) < ROUNDING, why
    else:
        same(ours, stock, why)


def generated(family: str, model: Any) -> tuple[list[Tensor], Tensor]:
    """The new tokens of each row and their logits, of a left-padded batch where the stock model can read one."""
    if FAMILIES[family].pads:
        ids, mask = left_padded(ROWS)
        batches = [model.generate(ids, attention_mask=mask, **SETTINGS)]
    else:
        batches = [model.generate(row[None], **SETTINGS) for row in ROWS]
    new = [row[-SETTINGS["max_new_tokens"] :] for batch in batches for row in batch.sequences]
    return new, torch.cat([torch.stack(batch.logits) for batch in batches], 1)


def cached_and_whole(family: str, model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of each row's new tokens, generated in a batch, and of a full forward of the row alone."""
    tokens, logits = generated(family, model)
    for i, (row, new) in enumerate(zip(ROWS, tokens, strict=True)):
        yield logits[:, i], logits_of(model, torch.cat([row, new])[None], use_cache=False)[0, len(row) - 1 : -1]


@pytest.mark.parametrize("family", SERVED)
def test_unrotated_keys_give_the_stock_model(family: str) -> None:
    model = model_of(family)
    before, stock = fingerprint(model), logits_of(model, IDS)
    stock_tokens, stock_logits = generated(family, model)
    with PositionFree().on(model):
        equal(family, logits_of(model, IDS), stock, "prefill")
        tokens, logits = generated(family, model)
    same(torch.stack(tokens), torch.stack(stock_tokens))
    equal(family, logits, stock_logits, "left-padded generation")
    same(logits_of(model, IDS), stock, "after undo")
    assert fingerprint(model) == before


@pytest.mark.parametrize("family", SERVED)
def test_a_window_gives_rows_alone_and_cached_as_uncached(family: str) -> None:
    model = model_of(family)
    stock = logits_of(model, IDS)
    stock_off = [distance(cached, whole) for cached, whole in cached_and_whole(family, model)]
    WINDOW.apply(model)
    differs(logits_of(model, IDS), stock)
    for i, (cached, whole) in enumerate(cached_and_whole(family, model)):
        if FAMILIES[family].steps:
            close(cached, whole, f"row {i} alone and uncached")
        else:
            assert distance(cached, whole) < 3 * stock_off[i], f"row {i} alone and uncached"
        same(cached.argmax(-1), whole.argmax(-1), f"row {i}")


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


def test_a_model_that_does_not_rotate_with_its_own_arguments_is_refused() -> None:
    """Falcon with ALiBi has a rotary embedding, and rotates by it where it is handed no biases."""
    model = model_of("falcon", alibi=True, new_decoder_architecture=False, multi_query=False, num_kv_heads=4)
    before, stock = fingerprint(model), logits_of(model, IDS)
    with pytest.raises(ValueError, match="does not rotate its keys when the model calls it"):
        PositionFree().apply(model)
    assert fingerprint(model) == before
    same(logits_of(model, IDS), stock)


@pytest.mark.parametrize(("family", "rotates"), [("cohere2", False), ("exaone4", False), ("olmo3", True)])
def test_a_loaded_model_knows_its_layers_without_rotation_before_its_first_forward(
    family: str, rotates: bool, tmp_path: Path
) -> None:
    model = model_of(family, **TWO_LAYERS)
    WINDOW.apply(model)
    ours = logits_of(model, IDS)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    (known,) = known_of(loaded.model.layers[1].self_attn).values()
    assert bool(known.layouts) is rotates
    assert not known.checked, "there are no weights yet to check it with"
    with torch.no_grad():
        compiled = torch.compile(loaded, fullgraph=True, backend="eager")
        close(compiled(IDS, use_cache=False).logits, ours, "compiled before anything was run")
    same(logits_of(loaded, IDS), ours)


@pytest.mark.parametrize(("family", "rotates"), [("cohere2", False), ("olmo3", True)])
def test_an_offloaded_model_learns_which_layers_rotate_in_its_first_forward(family: str, rotates: bool) -> None:
    with WINDOW.on(model_of(family)) as model:
        ours = logits_of(model, IDS)
    model = accelerate.cpu_offload(model_of(family), execution_device=torch.device("cpu"))
    with WINDOW.on(model):
        layers = vars(model.model)[STATE].layers
        assert not any(known_of(module) for module in layers)
        same(logits_of(model, IDS), ours)
        known = [found for module in layers for found in known_of(module).values()]
    assert [bool(found.layouts) for found in known] == [rotates, rotates]
    assert all(found.checked for found in known)


def test_dropout_of_attention_is_refused_where_it_is_applied() -> None:
    model = model_of("seed_oss")
    with WINDOW.on(model):
        model.train()
        with pytest.raises(ValueError, match=r"dropout=0\.1"):
            model(IDS)
        model.eval()
        assert torch.isfinite(logits_of(model, IDS)).all()
