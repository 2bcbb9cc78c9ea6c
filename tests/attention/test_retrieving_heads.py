"""Heads that retrieve: found in a model that has one, saved with the method, and the only ones that look up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.attention.retrieving_heads import voting
from hf_longctx.cache import RetrievingLayer, SinkWindowLayer
from hf_longctx.registry import parse
from tests.contract.registry import close, differs, fingerprint
from tests.tiny import logits_of, text, tiny

# without the dims that rotate fast
ORDER = torch.tensor([*range(2, 32), *range(34, 64)])[torch.randperm(60, generator=torch.Generator().manual_seed(3))]
METHOD = CodeLookup(n_global=2, n_local=40, top_k=3)


@pytest.fixture
def copying() -> Any:
    """A model in which query head 1 of layer 0 asks for the token that comes next in `ORDER`."""
    sizes = {"vocab_size": 64, "hidden_size": 64, "head_dim": 64, "rope_parameters": {"rope_theta": 1e30}}
    model = tiny(**{**sizes, "initializer_range": 0.02})
    following = torch.zeros(64, 64)
    following[ORDER.roll(-1), ORDER] = 1.5
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(64))
        attention = model.model.layers[0].self_attn
        for p in (*model.model.layers[0].self_attn.parameters(), *model.model.layers[1].self_attn.parameters()):
            p.mul_(0.01)
        attention.q_proj.weight[64:128] = following
        attention.k_proj.weight[:64] = 1.5 * torch.eye(64)
    return model


def test_the_head_that_copies_is_found_and_nothing_is_left_of_the_search(copying: Any) -> None:
    before = fingerprint(copying)
    found = METHOD.calibrated(copying, ORDER)
    assert found == CodeLookup(n_global=2, n_local=40, top_k=3, gate="heads", heads=[[0, 1]])
    assert found == METHOD.calibrated(copying, ORDER.tolist())
    assert fingerprint(copying) == before
    assert METHOD.calibrated(copying, ORDER, share=0).heads == [[0, 1]], "no other head finds a single token"
    wide = dataclasses.replace(METHOD, gate_margin=1.0).calibrated(copying, ORDER)
    assert (wide.gate_margin, wide.heads) == (0.0, [[0, 1]]), "the gate of the search is not that of the result"
    with pytest.raises(ValueError, match=r"no head looks up the next token .* of the 59; the best, .*, does for 0"):
        METHOD.calibrated(copying, ORDER.flip(0))


def test_it_is_saved_and_loaded_with_the_model(copying: Any, tmp_path: Path) -> None:
    found = METHOD.calibrated(copying, ORDER)
    ids = ORDER.repeat(2)[None]
    with LMInfinite(n_global=2, n_local=40).on(copying):
        window = logits_of(copying, ids)
    found.apply(copying)
    differs(logits_of(copying, ids), window)
    copying.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.hf_longctx["methods"] == [found.spec()]
    close(logits_of(loaded, ids), logits_of(copying, ids))
    assert parse("code_lookup", ["gate=heads", "heads=[[0,1]]"]) == CodeLookup(gate="heads", heads=[[0, 1]])


def test_layers_without_such_a_head_keep_their_window_only() -> None:
    model = tiny()
    with CodeLookup(n_global=2, n_local=6, gate="heads", heads=[[1, 3]]).on(model):
        cache = model(text(1, 40), use_cache=True).past_key_values
    assert [type(layer) for layer in cache.layers] == [SinkWindowLayer, RetrievingLayer]


def test_other_heads_of_a_group_have_no_vote() -> None:
    q = torch.arange(6.0).view(1, 6, 1, 1)
    assert voting(q, None, 2) is q
    assert voting(q, [1, 3, 5], 2).flatten().tolist() == [1, 1, 1, 3, 5, 5]
    assert voting(q, [4], 2).flatten().tolist() == [0, 1, 2, 4, 4, 4], "a group without any is not asked"


@pytest.mark.parametrize(
    ("heads", "said"),
    [([[0, 1], [2, 0]], r"one in layer 2, .* are 0, 1\. Calibrate"), ([[1, 4]], r"\[1, 4\] .* has 4 query heads")],
)
def test_heads_of_another_model_are_refused_and_the_model_is_left_as_it_was(heads: Any, said: str) -> None:
    model = tiny()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=said):
        CodeLookup(n_local=6, gate="heads", heads=heads).apply(model)
    assert fingerprint(model) == before


def broken() -> Iterator[int]:
    yield 5
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("ids", "share", "said"),
    [
        (torch.arange(15), 0.1, "15 tokens of a text; expected at least 16"),
        ([], 0.1, "0 tokens of a text"),
        ("a text", 0.1, "ids is of type str"),
        (text(2, 30), 0.1, "a tensor of shape"),
        ([5] * 20 + [61], 0.1, "outside the model's vocabulary"),
        (torch.arange(40), 1.5, "share=1.5: expected a share of a text's tokens, from 0 to 1"),
        (torch.arange(40), "0.1", "share='0.1': expected a share of a text's tokens"),
        (torch.arange(40), None, "share=None: expected a share of a text's tokens"),
        (torch.arange(40), 0.9, r"share=0.9: no head .* Give a smaller share or a longer text, or take gate='score'"),
    ],
)
def test_wrong_texts_and_shares(ids: Any, share: Any, said: str) -> None:
    model = tiny()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=said):
        METHOD.calibrated(model, ids, share=share)
    assert fingerprint(model) == before


def test_a_model_in_training_one_with_a_method_and_a_broken_source() -> None:
    model = tiny()
    with pytest.raises(RuntimeError, match="OSError: the disk is gone"):
        METHOD.calibrated(model, broken())
    with pytest.raises(ValueError, match=r"train mode.*Call model.eval"):
        METHOD.calibrated(model.train(), range(20))
    for nothing in (None, "a-model"):
        with pytest.raises(ValueError, match="expected a model in memory"):
            METHOD.calibrated(nothing, range(20))  # type: ignore[arg-type]
    model.eval()
    with LMInfinite(n_local=6).on(model), pytest.raises(ValueError, match="is already applied"):
        METHOD.calibrated(model, range(20))
