"""The text tower of a vision-language model: the method reaches it, whoever loads, saves or calls the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, DynamicCache, Gemma3Config, Gemma3ForConditionalGeneration

import hf_longctx
from hf_longctx import LMInfinite, PositionFree
from tests.contract.registry import close, differs, fingerprint, same
from tests.tiny import build, config_of, greedy_uncached, left_padded, logits_of, text

IDS = text(2, 24)
METHOD = LMInfinite(n_global=2, n_local=6)
KEY = {"version": 1, "methods": [METHOD.spec()]}


def config(**changes: Any) -> Gemma3Config:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma3Config(
        text_config=config_of("gemma3").to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
        **changes,
    )


def model(config_: Gemma3Config | None = None) -> Any:
    return build(Gemma3ForConditionalGeneration, config_ or config(), attn_implementation=None)


def test_apply_generate_and_undo() -> None:
    vlm = model()
    stock, before = logits_of(vlm, IDS), fingerprint(vlm)
    patch = METHOD.apply(vlm)
    differs(logits_of(vlm, IDS), stock)
    same(vlm.generate(IDS, max_new_tokens=9, do_sample=False), greedy_uncached(vlm, IDS, 9))
    cache = DynamicCache(config=vlm.config.text_config)
    parts = [logits_of(vlm, chunk, past_key_values=cache) for chunk in IDS.split(7, 1)]
    close(torch.cat(parts, 1), logits_of(vlm, IDS))
    patch.undo()
    same(logits_of(vlm, IDS), stock)
    assert fingerprint(vlm) == before
    with pytest.raises(RuntimeError, match="un-rotated keys"):
        logits_of(vlm, IDS, past_key_values=cache)


def test_the_hook_alone_is_bit_equal_in_padded_generation() -> None:
    vlm = model()
    ids, mask = left_padded([IDS[0], IDS[1, :13]])
    stock = vlm.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    with PositionFree().on(vlm):
        same(vlm.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False), stock)


@pytest.mark.parametrize("where", ["extend_config", "text_config", "outer config"])
def test_a_keyed_config_is_active_saved_and_undone(where: str, tmp_path: Any) -> None:
    stock, plain = model(), model()
    METHOD.apply(plain)
    ours = logits_of(plain, IDS)
    if where == "extend_config":
        keyed_config = hf_longctx.extend_config(config(), METHOD)
    elif where == "text_config":
        keyed_config = config()
        keyed_config.text_config.hf_longctx = KEY
    else:
        keyed_config = config(hf_longctx=KEY)
    keyed = model(keyed_config)
    keyed.save_pretrained(tmp_path)
    for vlm in (keyed, Gemma3ForConditionalGeneration.from_pretrained(tmp_path)):
        assert [p.method for p in hf_longctx.applied(vlm)] == [METHOD]
        assert vlm.config.text_config is vlm.model.language_model.config
        assert vlm.config.text_config.hf_longctx == KEY
        same(logits_of(vlm, IDS), ours)
        same(vlm.generate(IDS, max_new_tokens=5), plain.generate(IDS, max_new_tokens=5))
        hf_longctx.undo(vlm)
        same(logits_of(vlm, IDS), logits_of(stock, IDS))
        assert "hf_longctx" not in vlm.config.to_json_string()
    inner = AutoModel.from_pretrained(tmp_path)
    cache = DynamicCache(config=inner.config.text_config)
    with torch.no_grad():
        parts = [inner(c, past_key_values=cache).last_hidden_state for c in IDS.split(7, 1)]
        close(torch.cat(parts, 1), inner(IDS).last_hidden_state)
