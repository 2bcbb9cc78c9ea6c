"""A forward's cache is found, and handed on, under every name that transformers has had for it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

import hf_longctx
from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.attention.unrotated import unrotated
from hf_longctx.editing.edit import edit
from hf_longctx.evaluation.perplexity import read
from hf_longctx.generation.share_beginning import share_beginning
from hf_longctx.upstream.caches import cache_in, cache_name, cache_out, generate_cache, given_cache, without_cache
from hf_longctx.upstream.signatures import renamed
from tests.contract.registry import close, same
from tests.tiny import FAMILIES, MORE_FAMILIES, logits_of, text, tiny

STOCK = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"

pytestmark = pytest.mark.floor  # what a new release of transformers breaks first


class Remote(nn.Module):
    """A model of code from the Hub, written when the cache was called `past_key_values`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.device = tiny("llama"), torch.device("cpu")

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        out = self.inner(input_ids, **given_cache(self.inner, past_key_values), **kwargs)
        return SimpleNamespace(logits=out.logits, past_key_values=cache_out(out))


def test_the_name_is_that_of_the_called_forwards_signature() -> None:
    model = tiny("llama")
    assert cache_name(model) == cache_name(model.model) == cache_name(CausalLMOutputWithPast) == STOCK
    assert cache_name(get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"]))) == STOCK
    assert cache_name(torch.compile(model, backend="eager")) == STOCK
    assert cache_name(lambda **inputs: None) == STOCK  # what stands in for a model takes what transformers would give
    assert cache_name(Remote()) == "past_key_values"
    assert cache_name(tiny("gpt_neox").gpt_neox.layers[0].attention) == "layer_past"


@pytest.mark.parametrize("name", ["cache", "past_key_values", "layer_past", "cache_params"])
def test_a_cache_is_found_under_every_name(name: str) -> None:
    cache = DynamicCache()  # empty, and so false in a condition
    assert cache_in({"use_cache": True, name: cache}) is cache
    assert cache_in({name: None}, (None, cache)) is cache
    assert cache_in({name: None}) is None
    assert cache_out(SimpleNamespace(**{name: cache})) is cache
    assert without_cache({name: cache, "use_cache": True}) == {"use_cache": True}


def test_a_model_of_code_from_the_hub_is_read_in_chunks() -> None:
    model, ids = Remote().eval(), text(1, 30)
    same(read(model, ids, n_targets=8, chunk=7), read(model.inner, ids, n_targets=8, chunk=7))


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_nothing_of_the_package_uses_a_name_that_warns(family: str) -> None:
    model, ids = tiny(family), text(1, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for method in (PositionFree(), LMInfinite(n_local=8), StreamingLLM(window=8)):
            with method.on(model):
                model.generate(ids, max_new_tokens=3, do_sample=False)
                hf_longctx.stream(model, ids[0], chunk=7, bounded=False)
        read(model, ids, n_targets=8, chunk=7)
        with hf_longctx.shared_prefix(model, ids[0]) as prefix:
            prefix.generate(text(2, 5), max_new_tokens=2, cache=prefix.cache())
        model.generate(torch.cat([ids, ids]), custom_generate=share_beginning, max_new_tokens=2)
        if family != "gemma3":
            cache = DynamicCache(config=model.config)
            logits_of(model, ids, **given_cache(model, cache))
            new = torch.cat([ids[:, :9], ids[:, 12:]], 1)
            edit(model, cache, ids[0], new[0])
            model.generate(new, **generate_cache(cache), max_new_tokens=2)


def test_both_names_of_a_prefixs_cache_are_one_argument() -> None:
    model, asked = tiny("llama"), text(1, 5)
    with hf_longctx.shared_prefix(model, text(1, 24)[0]) as prefix:
        new, old = (
            prefix.generate(asked, **{name: prefix.cache()}, max_new_tokens=3, do_sample=False)
            for name in ("cache", "past_key_values")
        )
        same(new, old)
        with pytest.raises(ValueError, match="two names of one argument"):
            prefix.generate(asked, cache=prefix.cache(), past_key_values=prefix.cache())


def test_a_decorator_that_renames_arguments_is_looked_through_and_others_are_not() -> None:
    forward: Any = type(tiny("llama").model.layers[0].self_attn).forward
    assert not hasattr(renamed(forward), "__wrapped__")
    assert unrotated(forward) is not renamed(forward), "the rotation is left out under the decorator too"

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    theirs.__wrapped__ = forward  # type: ignore[attr-defined]
    assert renamed(theirs) is theirs
    under: Any = unrotated(theirs)
    assert under is not theirs
    assert under.__code__ is theirs.__code__, "it stays, over the forward without its rotation"


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_generate_writes_what_full_forwards_say(family: str) -> None:
    """The fault of 5.24: full forwards agreed, and cached ones counted their positions from 0."""
    model, ids = tiny(family), text(2, 19)
    with LMInfinite(n_global=2, n_local=6).on(model):
        out = model.generate(ids, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True)
        whole = logits_of(model, out.sequences, use_cache=False)[:, 18:-1]
    close(torch.stack(out.logits, 1), whole)
    assert isinstance(model, LlamaForCausalLM) or family != "llama"
