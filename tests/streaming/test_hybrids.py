"""Models with recurrent or convolution states: read in pieces as in one forward, and never on from half a forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import LMInfinite, PositionFree, StreamingLLM, stream
from hf_longctx.cache.recurrent import states
from hf_longctx.editing.session import EditSession
from hf_longctx.evaluation.answer import answer
from hf_longctx.evaluation.perplexity import read
from hf_longctx.sharing.prefix import shared_prefix
from tests.contract.registry import close
from tests.hybrids import ANEW, HYBRIDS, hybrid
from tests.tiny import logits_of, text, tiny, tokenizer

IN_PIECES = [name for name in HYBRIDS if name not in ANEW]
every_hybrid = pytest.mark.parametrize("name", HYBRIDS)
in_pieces = pytest.mark.parametrize("name", IN_PIECES)


def whole(model: Any, ids: Tensor, n: int) -> Tensor:
    logits = logits_of(model, ids, use_cache=False)[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")[:, -n:]


@contextmanager
def breaking_off(layer: Any, error: type[BaseException]) -> Iterator[None]:
    """Once, before this layer: the user's Ctrl-C, or too little memory."""

    def stop(*_: Any) -> None:
        hook.remove()
        raise error

    hook = layer.register_forward_pre_hook(stop)
    with pytest.raises(error):
        yield


# -- in pieces -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*HYBRIDS, "llama", "roberta", "minimax"])
@pytest.mark.parametrize(("batch", "chunk", "score_chunk"), [(1, 70, 8), (3, 16, 3), (1, 5, 70)])
def test_perplexity_does_not_depend_on_the_chunk(name: str, batch: int, chunk: int, score_chunk: int) -> None:
    more = {"minimax": {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "block_size": 8}}
    model = hybrid(name, **({"is_decoder": True} if name == "roberta" else more.get(name, {})))
    ids = text(batch, 70)
    found = read(model, ids, n_targets=9, chunk=chunk, score_chunk=score_chunk)
    # the scan of a recurrent layer in other blocks, fp32
    torch.testing.assert_close(found, whole(model, ids, 9), atol=1e-3, rtol=1e-3)


@in_pieces
def test_perplexity_under_a_method(name: str) -> None:
    model, ids, method = hybrid(name), text(1, 40), LMInfinite(n_local=64)
    try:
        patch = method.apply(model)
    except ValueError:
        pytest.skip("refused by name")
    expected = whole(model, ids, 9)
    torch.testing.assert_close(read(model, ids, n_targets=9, chunk=7, score_chunk=4), expected, atol=1e-3, rtol=1e-3)
    patch.undo()


@pytest.mark.parametrize("name", [*IN_PIECES, "llama", "roberta"])
def test_a_reader_in_chunks_is_one_forward(name: str) -> None:
    model, ids = hybrid(name, **({"is_decoder": True} if name == "roberta" else {})), text(1, 40)
    reader = stream(model, ids[0], chunk=7, bounded=False)
    torch.testing.assert_close(reader.logits, logits_of(model, ids, use_cache=False)[0, -1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ANEW)
def test_what_begins_anew_with_every_piece_is_read_token_by_token_or_not_at_all(name: str) -> None:
    model, ids = hybrid(name), text(1, 40)
    with pytest.raises(ValueError, match="recurrent layers start again with every piece of several tokens") as error:
        stream(model, ids[0], chunk=7, bounded=False)
    assert "chunk=1" in str(error.value)
    reader = stream(model, ids[0], chunk=1, bounded=False)
    torch.testing.assert_close(reader.logits, logits_of(model, ids, use_cache=False)[0, -1], atol=1e-3, rtol=1e-3)


# -- after a forward that broke off ------------------------------------------------------------------------------------
@every_hybrid
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_reader_does_not_go_on_from_half_a_forward(name: str, error: type[BaseException]) -> None:
    model = hybrid(name)
    layers = model.get_decoder().layers
    reader = stream(model, text(1, 20)[0], bounded=False, chunk=1 if name in ANEW else 16)
    with breaking_off(layers[1], error):
        reader.read(text(1, 3, seed=1)[0])
    with pytest.raises(RuntimeError, match="half-way at position 2"):
        reader.read([3])


@in_pieces
def test_a_chat_does_not_go_on_from_half_a_token(name: str) -> None:
    model = hybrid(name)
    reader = stream(model, text(1, 20)[0], bounded=False)
    written = reader.generate(do_sample=False)
    next(written)
    with breaking_off(model.get_decoder().layers[1], KeyboardInterrupt):
        next(written)
    with pytest.raises(RuntimeError, match="half-way at position 20"):
        reader.read([3])


@in_pieces
def test_a_first_forward_that_never_began_can_be_had_again(name: str) -> None:
    model, ids = hybrid(name), text(1, 20)
    reader = stream(model, bounded=False)
    with breaking_off(model.get_input_embeddings(), KeyboardInterrupt):
        reader.read(ids[0])
    reader.read(ids[0])
    torch.testing.assert_close(reader.logits, logits_of(model, ids, use_cache=False)[0, -1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3_next", "lfm2", "olmo_hybrid"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_cache_of_ones_own_is_refused_after_half_a_forward(name: str, error: type[BaseException]) -> None:
    model, ids, more = hybrid(name), text(1, 20), text(1, 5, seed=1)
    pos = torch.arange(20, 25)[None]
    with LMInfinite(n_local=64).on(model):
        cache = DynamicCache(config=model.config)
        logits_of(model, ids, past_key_values=cache)
        with breaking_off(model.model.layers[1], error):
            logits_of(model, more, past_key_values=cache, position_ids=pos)
        with pytest.raises(RuntimeError, match="broke off half-way"):
            logits_of(model, more, past_key_values=cache, position_ids=pos)
        new = DynamicCache(config=model.config)
        logits_of(model, ids, past_key_values=new)
        close(logits_of(model, more, past_key_values=new)[:, -1], logits_of(model, torch.cat([ids, more], 1))[:, -1])


@pytest.mark.parametrize(
    "method", [LMInfinite(n_local=6), StreamingLLM(window=6), PositionFree()], ids=lambda m: m.name
)
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_so_is_one_of_which_only_stock_windows_have_read_on(error: Any, length: int, method: Any) -> None:
    model, ids, more = tiny("gemma3"), text(2, 20), text(2, length, seed=1)
    with method.on(model):
        cache = DynamicCache(config=model.config)
        logits_of(model, ids, past_key_values=cache)
        with breaking_off(model.model.layers[0], error):  # before any layer: nothing has read on
            logits_of(model, more, past_key_values=cache)
        whole = copy.deepcopy(cache)
        close(logits_of(model, more, past_key_values=whole)[:, -1], logits_of(model, torch.cat([ids, more], 1))[:, -1])
        with breaking_off(model.model.layers[1], error):
            logits_of(model, more, past_key_values=cache)
        with pytest.raises(RuntimeError, match="broke off half-way"):
            logits_of(model, more, past_key_values=cache)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_so_is_one_that_lacks_layers_which_a_first_forward_did_not_come_to(error: Any, family: str) -> None:
    model, ids = tiny(family), text(1, 20)
    with LMInfinite(n_local=64).on(model):
        cache = DynamicCache()  # gets its layers one by one
        with breaking_off(model.model.layers[0], error):
            logits_of(model, ids, past_key_values=cache)
        with breaking_off(model.model.layers[1], error):
            logits_of(model, ids, past_key_values=cache)
        with pytest.raises(RuntimeError, match="broke off half-way"):
            logits_of(model, ids, past_key_values=cache)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("when", ["reading", "writing"])
def test_a_turn_after_a_prefix_is_refused_after_half_a_forward(error: type[BaseException], when: str) -> None:
    model, question = tiny(), text(1, 5, seed=1)
    with shared_prefix(model, text(1, 20)[0]) as prefix:
        cache = prefix.cache()
        if when == "writing":
            said = prefix.generate(question, past_key_values=cache, max_new_tokens=4, do_sample=False)
            question = torch.cat([said, text(1, 1, seed=2)], 1)
        with breaking_off(model.model.layers[1], error):
            prefix.generate(question, past_key_values=cache, max_new_tokens=4, do_sample=False)
        longer = torch.cat([question, text(1, 9, seed=3)], 1)
        with pytest.raises(RuntimeError, match="the prefix itself is whole"):
            prefix.generate(longer, past_key_values=cache, max_new_tokens=4, do_sample=False)
        again = prefix.generate(longer, past_key_values=prefix.cache(), max_new_tokens=4, do_sample=False)
        assert torch.equal(again, prefix.generate(longer, max_new_tokens=4, do_sample=False))


# -- what holds no states ----------------------------------------------------------------------------------------------
@every_hybrid
def test_states_are_neither_shared_nor_edited(name: str) -> None:
    model = hybrid(name)
    with (
        pytest.raises(ValueError, match=r"cannot share a prefix|no decoder with rotary"),
        shared_prefix(model, text(1, 9)[0]),
    ):
        pass
    with pytest.raises(ValueError, match=r"recurrent ones|no decoder with rotary"):
        EditSession(model, tokenizer(), "w3 w4 w5")


@every_hybrid
def test_nbytes_counts_states(name: str) -> None:
    model = hybrid(name)
    reader = stream(model, text(1, 20)[0], bounded=False, chunk=1 if name in ANEW else 16)
    keys = [t for layer in reader.cache.layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    held = sum(t.nbytes for t in keys if isinstance(t, Tensor)) + sum(t.nbytes for t in states(reader.cache))
    assert states(reader.cache)
    assert reader.nbytes == held


@every_hybrid
def test_prompts_are_answered_in_chunks_as_in_one_piece_or_not_at_all(name: str) -> None:
    model, prompts = hybrid(name), [text(1, 300, seed)[0] for seed in (1, 2)]
    at_once = answer(model, tokenizer(), prompts, 4)
    if name in ANEW:
        with pytest.raises(ValueError, match="cannot read a prompt in chunks of 256 tokens"):
            answer(model, tokenizer(), prompts, 4, prefill_tokens=16)
    else:
        assert answer(model, tokenizer(), prompts, 4, prefill_tokens=16) == at_once
