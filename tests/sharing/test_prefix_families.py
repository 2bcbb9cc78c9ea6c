"""Which families can share a prefix: one for each way in which models differ, right or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longctx import shared_prefix
from hf_longctx.anatomy import attention_layers, find_decoder
from hf_longctx.attention.ways import INTERFACE, reach_of
from hf_longctx.sharing.attends import check_layer
from hf_longctx.sharing.model import SharedImplementation
from hf_longctx.upstream.caches import given_cache
from tests.contract.registry import fingerprint, same
from tests.families.census.looking import RIGHT, distance
from tests.families.table import HERE, model_of
from tests.tiny import logits_of, text, tiny

DOCUMENT, QUESTIONS = text(1, 50, seed=3), text(2, 9, seed=4)
KEPT = "something other than keys of their own"
MADE = "attends to something that it makes of the keys and values in its cache"
ELSEWHERE = "does not call transformers' attention interface"
# None: served
FAMILIES: dict[str, str | None] = {
    "qwen2": None,
    "cohere2": None,
    "glm": None,
    "phi": None,
    "stablelm": None,
    "persimmon": None,
    "beam": None,
    "gpt_oss": "has learned attention sinks",
    "flint": "has learned attention sinks",
    "mimo_v2_flash": "has learned attention sinks",
    "gemma2": r"attends with logit soft-capping \(1\.5\)",
    "vaultgemma": r"attends with logit soft-capping \(1\.5\)",
    "minicpm3": MADE,
    "deepseek_v2": MADE,
    "deepseek_v3": MADE,
    "diffllama": MADE,
    "jetmoe": MADE,
    "doge": "attends under a mask of its own",
    "falcon": ELSEWHERE,
    "gptj": ELSEWHERE,
    "codegen": ELSEWHERE,
    "gpt_neox_japanese": ELSEWHERE,
    "gemma3n_text": KEPT,
    "gemma4_text": KEPT,
    "falcon_h1": KEPT,
    "zamba2": KEPT,
    "hrm_text": KEPT,
    "llama4_text": "of the kind 'chunked_attention'",
}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in HERE])
def test_a_family_shares_a_prefix_rightly_or_is_refused_with_the_reason(family: str) -> None:
    model, reason = model_of(family), FAMILIES[family]
    before = fingerprint(model)
    stock = logits_of(model, torch.cat([DOCUMENT.expand(2, -1), QUESTIONS], 1))[:, -QUESTIONS.shape[1] :]
    if reason == ELSEWHERE and all(reach_of(type(m)).way == INTERFACE for m in attention_layers(find_decoder(model))):
        reason = None  # GPT-J and CodeGen of transformers 5.24
    if reason is None:
        with shared_prefix(model, DOCUMENT[0]) as prefix:
            ours = logits_of(model, QUESTIONS, **given_cache(model, prefix.cache()))
        assert distance(ours, stock) < RIGHT
    else:
        with pytest.raises(ValueError, match=reason), shared_prefix(model, DOCUMENT[0]):
            raise AssertionError("it was not refused")
    assert fingerprint(model) == before
    same(logits_of(model, torch.cat([DOCUMENT.expand(2, -1), QUESTIONS], 1))[:, -QUESTIONS.shape[1] :], stock)


def test_a_layer_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny()
    layer, calls = model.model.layers[0].self_attn, []
    for _ in range(3):
        check_layer(layer, model.model, SharedImplementation("sdpa"))
        monkeypatch.setattr(layer.q_proj, "forward", lambda x: calls.append(x))
    assert not calls
