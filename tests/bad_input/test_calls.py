"""Caches, prompts and masks that users get wrong: each a clear error, or the right behaviour."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    StaticCache,
)

import hf_longctx
from hf_longctx import LMInfinite
from hf_longctx.upstream.caches import generate_cache, given_cache
from tests.bad_input.conftest import IDS, METHOD
from tests.contract.registry import close, same
from tests.tiny import FAMILIES, left_padded, logits_of, text, tiny


# -- caches ------------------------------------------------------------------------------------------------------------
def keys_of(cache: DynamicCache) -> list[Tensor]:
    return [layer.keys.clone() for layer in cache.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_is_only_good_for_the_model_that_wrote_it(family: str, method: Any) -> None:
    model, more = tiny(family), text(2, 3, seed=9)
    patch = method.apply(model)
    ours = DynamicCache(config=model.config)
    logits_of(model, IDS, past_key_values=ours)
    expected = logits_of(model, torch.cat([IDS, more], 1))[:, -3:]
    patch.undo()
    rotated = DynamicCache(config=model.config)
    logits_of(model, IDS, past_key_values=rotated)
    stock = logits_of(model, torch.cat([IDS, more], 1))[:, -3:]

    before = keys_of(ours)
    with pytest.raises(RuntimeError, match="un-rotated keys written under"):
        logits_of(model, more, past_key_values=ours)
    with pytest.raises(RuntimeError, match="un-rotated keys written under"):
        model.generate(torch.cat([IDS, more], 1), past_key_values=ours, max_new_tokens=2)
    for mine, other in zip(keys_of(ours), before, strict=True):
        same(mine, other)
    method.apply(model)
    before = keys_of(rotated)
    with pytest.raises(ValueError, match="24 rotated keys of a model without"):
        logits_of(model, more, past_key_values=rotated)
    for mine, other in zip(keys_of(rotated), before, strict=True):
        same(mine, other)
    close(logits_of(model, more, past_key_values=ours), expected, "the cache is still good for its method")
    hf_longctx.undo(model)
    close(logits_of(model, more, past_key_values=rotated), stock, "the stock cache is still good for the stock model")


@pytest.mark.parametrize("kind", ["tuple", "empty tuple", "encoder-decoder", "text", "static"])
def test_what_is_no_dynamic_cache_is_refused_by_its_name(kind: str, method: Any) -> None:
    model = tiny()
    kinds = {
        "tuple": ((torch.zeros(2, 2, 3, 8), torch.zeros(2, 2, 3, 8)),) * 2,
        "empty tuple": ((),),
        "encoder-decoder": EncoderDecoderCache(DynamicCache(), DynamicCache()),
        "text": "static",
        "static": StaticCache(config=model.config, max_cache_len=50),
    }
    method.apply(model)
    expected = logits_of(model, IDS)
    with pytest.raises(ValueError, match=rf"^\w+: {method.name} keeps its own cache .* Leave the cache .* out"):
        logits_of(model, IDS, past_key_values=kinds[kind])
    same(logits_of(model, IDS), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_of_other_rows_than_the_cache_is_refused_and_the_cache_stays_good(
    family: str, rows: int, method: Any
) -> None:
    model, more = tiny(family), text(2, 3, seed=9)
    method.apply(model)
    cache = DynamicCache(config=model.config)
    logits_of(model, IDS, past_key_values=cache)
    with pytest.raises(ValueError, match=rf"a batch of {rows} rows, and a cache that has read 2: .* new cache"):
        logits_of(model, text(rows, 3), past_key_values=cache)
    expected = logits_of(model, torch.cat([IDS, more], 1))[:, -3:]
    close(logits_of(model, more, past_key_values=cache), expected)


def test_a_cache_passed_by_position_is_read(method: Any) -> None:
    model, cache = tiny(), DynamicCache()
    method.apply(model)
    with torch.no_grad():
        parts = [model.model(ids, None, None, cache).last_hidden_state for ids in IDS.split(9, 1)]
        close(torch.cat(parts, 1), model.model(IDS).last_hidden_state)


def test_a_cache_of_other_settings_is_refused() -> None:
    model, cache = tiny(), DynamicCache()
    with METHOD.on(model):
        logits_of(model, IDS, past_key_values=cache)
    with LMInfinite(n_global=2, n_local=7).on(model), pytest.raises(ValueError, match=r"was written under .*n_local=6"):
        logits_of(model, IDS, past_key_values=cache)


@pytest.mark.parametrize("name", ["static", "quantized", "offloaded"])
def test_other_cache_implementations_are_refused(name: str, method: Any) -> None:
    model = tiny()
    method.apply(model)
    with pytest.raises(ValueError, match=f"cache_implementation='{name}'"):
        model.generate(IDS, max_new_tokens=2, cache_implementation=name)
    with pytest.raises(ValueError, match="can replace an empty DynamicCache only"):
        logits_of(model, IDS, past_key_values=StaticCache(config=model.config, max_cache_len=64))
    assert model.generate(IDS, max_new_tokens=2, cache_implementation="dynamic").shape == (2, 26)


def test_assisted_decoding_is_refused(method: Any) -> None:
    model = tiny()
    method.apply(model)
    for kwargs in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny()}):
        with pytest.raises(ValueError, match="assisted decoding"):
            model.generate(IDS[:1], max_new_tokens=4, **kwargs)
    with pytest.raises(RuntimeError, match="undo the method of the assistant model"):
        tiny(seed=1).generate(IDS[:1], max_new_tokens=12, do_sample=False, assistant_model=model)


@pytest.mark.parametrize("padded", [False, True], ids=["all read", "padded"])
@pytest.mark.parametrize("how", ["ids", "embeddings", "chunks"])
@pytest.mark.parametrize("fewer", [0, 1, 9, 20])
def test_a_text_of_which_the_cache_has_read_everything_is_refused_and_the_cache_stays_good(
    fewer: int, how: str, padded: bool, method: Any
) -> None:
    """transformers slices by what is left, a number that is 0 or negative then, and reads other tokens or all again."""
    model = tiny()
    method.apply(model)
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in ((13, 24) if padded else (24, 24))])
    cache, pos = DynamicCache(config=model.config), (mask.cumsum(1) - 1).clamp(min=0)
    logits_of(model, ids, attention_mask=mask, position_ids=pos, **given_cache(model, cache))
    seen, settings = mask[:, fewer:], {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    settings |= {"prefill_chunk_size": 5} if how == "chunks" else {}
    given = {"inputs_embeds": model.get_input_embeddings()(ids[:, fewer:])} if how == "embeddings" else {}
    words = rf"the cache has read 24 tokens, and generate was given a text of {24 - fewer}: .* start with a new cache"
    with pytest.raises(ValueError, match=words):
        model.generate(ids[:, fewer:], attention_mask=seen, **given, **generate_cache(cache), **settings)
    longer, mask = torch.cat([ids, text(2, 2)], 1), torch.cat([mask, mask.new_ones(2, 2)], 1)
    got = model.generate(longer, attention_mask=mask, **generate_cache(cache), **settings)
    same(got, model.generate(longer, attention_mask=mask, **settings))


# -- prompts and masks -------------------------------------------------------------------------------------------------
def test_an_empty_prompt_starts_with_bos_as_without_us(method: Any) -> None:
    model = tiny()
    stock = model.generate(max_new_tokens=3, do_sample=False)
    with method.on(model):
        same(model.generate(max_new_tokens=3, do_sample=False), stock)


def test_masks_that_are_more_than_padding_are_refused(method: Any) -> None:
    model = tiny()
    method.apply(model)
    causal = torch.ones(2, 1, 24, 24, dtype=torch.bool).tril()
    for mask in (causal, torch.zeros(2, 1, 24, 24).masked_fill(~causal, -1e9)):
        with pytest.raises(ValueError, match=r"attention_mask of shape \(2, 1, 24, 24\)"):
            logits_of(model, IDS, attention_mask=mask)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_packed_positions_are_refused(method: Any, masked: bool, use_cache: bool) -> None:
    model = tiny()
    method.apply(model)
    packed = torch.cat([torch.arange(10), torch.arange(14)])[None].expand(2, -1)
    mask = {"attention_mask": torch.ones_like(IDS)} if masked else {}
    with pytest.raises(ValueError, match=r"position_ids that (start again|do not rise)"):
        logits_of(model, IDS, position_ids=packed, use_cache=use_cache, **mask)


def test_a_row_of_padding_alone_harms_no_other_row(method: Any) -> None:
    model = tiny()
    method.apply(model)
    ids, mask = left_padded([IDS[0], IDS[1, :0]])
    batch = logits_of(model, ids, attention_mask=mask)
    assert batch.isfinite().all()
    close(batch[0], logits_of(model, IDS[:1])[0])
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    same(generated[:1], model.generate(IDS[:1], max_new_tokens=3, do_sample=False))
