"""`model.generate(..., custom_generate=share_beginning)` against `model.generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import LMInfinite, share_beginning
from hf_longctx.generation.share_beginning import common_beginning
from hf_longctx.sharing.layers import SharedCache
from tests.contract.registry import close, fingerprint, same
from tests.sharing.prefixes import DOCUMENT, GREEDY, IDS, LOGITS, MASK, behind
from tests.tiny import EOS, FAMILIES, left_padded, text, tiny

HOWS: dict[str, dict[str, Any]] = {
    "samples": {"do_sample": True, "num_return_sequences": 5, "max_new_tokens": 9},
    "beams": {**GREEDY, "num_beams": 4, "num_return_sequences": 2},
    "beam samples": {"do_sample": True, "num_beams": 3, "max_new_tokens": 9},
    "processors": {**GREEDY, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_gives_what_generate_gives(family: str, how: str) -> None:
    model = tiny(family, eos_token_id=EOS)
    before = fingerprint(model)
    for ids in (DOCUMENT[None], behind(DOCUMENT, text(3, 4, seed=8))):
        torch.manual_seed(3)
        stock = model.generate(ids, **HOWS[how])
        torch.manual_seed(3)
        same(model.generate(ids, custom_generate=share_beginning, **HOWS[how]), stock)
    assert fingerprint(model) == before


def test_one_copy_is_kept() -> None:
    model = tiny()
    ids = behind(DOCUMENT, text(3, 4, seed=8))
    ids[0, 23] = (ids[1, 23] + 1) % 60
    out = model.generate(ids, custom_generate=share_beginning, **GREEDY, **LOGITS)
    stock = model.generate(ids, **GREEDY, **LOGITS)
    same(out.sequences, stock.sequences)
    close(torch.stack(out.logits), torch.stack(stock.logits), "logits")
    cache = out.past_key_values
    assert isinstance(cache, SharedCache)
    assert cache.prefix_length == 23
    assert cache.layers[0].keys.shape[:3] == (3, 2, 4 + 11)


def test_the_last_token_is_every_rows_own() -> None:
    assert common_beginning(torch.tensor([[1, 2, 3], [1, 2, 3]]), None) == 2
    assert common_beginning(torch.tensor([[1, 2, 3], [1, 5, 3]]), None) == 1
    assert common_beginning(torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.tensor([[1, 1, 1], [0, 1, 1]])) == 0
    assert common_beginning(torch.tensor([[4]]), None) == 0


def test_what_cannot_share_is_refused() -> None:
    model = tiny()
    before = fingerprint(model)

    def refused(words: str, ids: Any, **settings: Any) -> None:
        with pytest.raises(ValueError, match=words):
            model.generate(ids, custom_generate=share_beginning, **{**GREEDY, **settings})

    refused("begin with different tokens", torch.cat([DOCUMENT[None], DOCUMENT[None].flip(1)]))
    refused("begin with different tokens, or with padding", IDS, attention_mask=MASK)
    refused("begin with different tokens", DOCUMENT[None, :1])
    refused("use_cache=False", DOCUMENT[None], use_cache=False)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(DOCUMENT[None, :5], past_key_values=cache)
    refused("leave the cache and inputs_embeds out", DOCUMENT[None], past_key_values=cache)
    refused("greedy decoding, sampling and beams", DOCUMENT[None], prompt_lookup_num_tokens=2)
    refused("greedy decoding, sampling and beams", DOCUMENT[None], assistant_model=tiny(seed=1))
    assert fingerprint(model) == before
    patch = LMInfinite(n_local=8).apply(model)
    refused("keeps un-rotated keys", DOCUMENT[None])
    patch.undo()
    rows = left_padded([DOCUMENT, DOCUMENT])[0]
    same(model.generate(rows, custom_generate=share_beginning, **GREEDY), model.generate(rows, **GREEDY))


def test_a_kind_of_cache_that_a_call_asks_for_is_refused_and_a_checkpoints_own_passed_over() -> None:
    model = tiny()
    stock = model.generate(DOCUMENT[None], **GREEDY)
    with pytest.raises(ValueError, match="cache_implementation='static': share_beginning keeps a cache of its own"):
        model.generate(DOCUMENT[None], custom_generate=share_beginning, cache_implementation="static", **GREEDY)
    model.generation_config.cache_implementation = "static"
    same(model.generate(DOCUMENT[None], custom_generate=share_beginning, **GREEDY), stock)
