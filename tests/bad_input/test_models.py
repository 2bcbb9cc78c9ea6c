"""Settings, models and patches that users get wrong: each a clear error before anything has changed, or right."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import types
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    pipeline,
)

import hf_longctx
from hf_longctx import LMInfinite, PositionFree, RopeScaling, StreamingLLM, shared_prefix
from hf_longctx.anatomy import find_decoder, full_attention_layers
from hf_longctx.registry import parse
from tests.bad_input.conftest import IDS, METHOD
from tests.contract.registry import close, fingerprint, same
from tests.tiny import FAMILIES, SIZES, build, logits_of, text, tiny, tokenizer

# -- settings ----------------------------------------------------------------------------------------------------------
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "window of 0": ({"n_local": 0}, r"n_local=0: .*at least 1 token"),
    "negative window": ({"n_local": -5}, "n_local=-5"),
    "negative first tokens": ({"n_global": -1}, "n_global=-1: expected 0 or more"),
    "negative top_k": ({"top_k": -1}, "top_k=-1"),
    "negative layer": ({"top_k": 1, "top_k_from_layer": -1}, "top_k_from_layer=-1"),
    "host without keys to keep": ({"keys_on_host": True}, "Set top_k"),
    "window as text": ({"n_local": "64"}, "n_local='64' is str, expected int or None"),
    "half a token": ({"n_local": 6.5}, "n_local=6.5 is float"),
    "true": ({"top_k": True}, "top_k=True is bool"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_nonsense_settings(case: str) -> None:
    fields, message = SETTINGS[case]
    with pytest.raises(ValueError, match=message):
        LMInfinite(**fields)


def test_a_constructor_names_the_settings_there_are() -> None:
    with pytest.raises(TypeError, match=r"no setting 'nlocal'. Did you mean 'n_local'\? There are: n_global, n_local"):
        LMInfinite(nlocal=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"by name only, for example LMInfinite\(n_global=10\)"):
        LMInfinite(4096)  # type: ignore[misc]
    assert list(inspect.signature(LMInfinite).parameters)[:2] == ["n_global", "n_local"]
    assert copy.deepcopy(METHOD) == pickle.loads(pickle.dumps(METHOD)) == METHOD


def test_whole_numbers_that_overflow_are_refused_and_smaller_ones_work() -> None:
    for method in (LMInfinite, StreamingLLM):
        field = {LMInfinite: "n_local", StreamingLLM: "window"}[method]
        with pytest.raises(ValueError, match=f"{field}={sys.maxsize} is more than"):
            method(**{field: sys.maxsize})
        model = tiny()
        stock = logits_of(model, IDS)
        with method(**{field: 2**53 - 1}).on(model):
            close(logits_of(model, IDS), stock)


def test_settings_on_the_command_line() -> None:
    assert parse("lm_infinite", ["n_local=64", "top_k=5"]) == LMInfinite(n_local=64, top_k=5)
    assert parse("lm_infinite", ["n_local=none"]) == LMInfinite()
    for settings, message in {"n_local": "key=value", "=4": "key=value", "n_lokal=4": "Did you mean 'n_local'"}.items():
        with pytest.raises(ValueError, match=message):
            parse("lm_infinite", [settings])
    with pytest.raises(ValueError, match="Did you mean 'lm_infinite'"):
        parse("LM-Infinite")


def test_a_layer_that_is_not_there() -> None:
    model = tiny()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"top_k_from_layer=2: the model has 2 layers \(0 to 1\)"):
        LMInfinite(n_local=6, top_k=5).apply(model)
    assert fingerprint(model) == before


def test_top_k_beyond_the_text_attends_to_all_of_it() -> None:
    model = tiny()
    for family_ids in (text(1, 5), text(1, 24)):
        with LMInfinite(n_global=2, n_local=6, top_k=10_000, top_k_from_layer=0).on(model):
            everything = logits_of(model, family_ids)
            assert model.generate(family_ids, max_new_tokens=3).shape[1] == family_ids.shape[1] + 3
        with LMInfinite(n_global=2, n_local=6, top_k=24, top_k_from_layer=0).on(model):
            same(logits_of(model, family_ids), everything)


@pytest.mark.parametrize("n_local", [1, 2])
@pytest.mark.parametrize("n_global", [0, 1, 500])
def test_extreme_windows_generate_what_a_forward_gives(n_global: int, n_local: int) -> None:
    model = tiny()
    with LMInfinite(n_global=n_global, n_local=n_local).on(model):
        full, cache = logits_of(model, IDS), DynamicCache()
        parts = [logits_of(model, chunk, past_key_values=cache) for chunk in IDS.split(5, 1)]
        close(torch.cat(parts, 1), full)


def test_a_text_shorter_than_the_window_is_read_as_by_the_stock_model(method: Any) -> None:
    model, short = tiny(), text(1, 5)
    stock = model.generate(short, max_new_tokens=1, do_sample=False)
    expected = logits_of(model, short)
    with method.on(model):
        close(logits_of(model, short), expected)
        same(model.generate(short, max_new_tokens=1, do_sample=False), stock)


# -- models ------------------------------------------------------------------------------------------------------------
def refused(model: Any, message: str) -> None:
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        PositionFree().apply(model)
    assert fingerprint(model) == before
    assert not hf_longctx.applied(model)


def test_what_is_no_model_is_refused_with_what_to_give() -> None:
    held = pipeline("text-generation", model=tiny(), tokenizer=tokenizer())
    before = fingerprint(held.model)
    given = {
        "TextGenerationPipeline: .*the .model inside": held,
        "'some/path': .*from_pretrained": "some/path",
        "None: .*from_pretrained": None,
        "LlamaConfig: .*from_pretrained": tiny().config,
        "TokenizersBackend: .*from_pretrained": tokenizer(),
    }
    for message, thing in given.items():
        for call in (METHOD.apply, hf_longctx.applied, hf_longctx.undo):
            with pytest.raises(ValueError, match=message):
                call(thing)
        with pytest.raises(ValueError, match=message), METHOD.on(thing):
            pass
    assert fingerprint(held.model) == before


def test_the_name_of_our_attention_is_not_one_to_choose() -> None:
    model = tiny()
    model.set_attn_implementation("hf_longctx")
    with pytest.raises(ValueError, match=r"attn_implementation='hf_longctx' is reserved for hf_longctx"):
        logits_of(model, IDS)


def test_encoders_are_refused() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    refused(BertModel(BertConfig(**sizes, vocab_size=30)), "BertModel: no decoder with rotary.*BertSelfAttention")
    refused(torch.nn.Linear(2, 2), "Linear: no decoder with rotary .*no attention modules at all")
    config = LlamaConfig(**{**SIZES, "is_causal": False})
    bidirectional = LlamaModel(config)
    for layer in bidirectional.layers:
        layer.self_attn.is_causal = False
    refused(bidirectional, "both directions|bidirectional")


MLA = {
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    **{"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2},
    **{"num_key_value_heads": 4, "head_dim": 4},
}


def deepseek(**settings: Any) -> Any:
    config = AutoConfig.for_model("deepseek_v3", **{**SIZES, **MLA, **settings})
    return build(AutoModelForCausalLM.from_config, config)


def test_a_cache_of_mla_is_only_good_for_its_own_method(method: Any) -> None:
    model, cache = deepseek(), DynamicCache()
    with StreamingLLM(n_sink=2, window=7).on(model):
        logits_of(model, IDS[:, :20], past_key_values=cache)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    with method.on(model), pytest.raises(ValueError, match=r"was written under StreamingLLM\(.*\) and cannot be read"):
        logits_of(model, IDS[:, 20:], past_key_values=cache)
    with pytest.raises(RuntimeError, match="un-rotated keys written under StreamingLLM"):
        logits_of(model, IDS[:, 20:], past_key_values=cache)
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        same(layer.keys, keys)
        same(layer.values, values)


def test_a_model_whose_own_attention_fails_is_refused_in_one_line() -> None:
    model = deepseek(head_dim=8)  # the rotary embedding has the angles of 8 dims, and 4 rotate
    with pytest.raises(RuntimeError, match="size of tensor"):
        logits_of(model, IDS)
    with pytest.raises(ValueError, match=r"DeepseekV3.*size of tensor"):
        PositionFree().apply(model)
    assert not hf_longctx.applied(model)


def test_models_with_sliding_windows_only_are_refused() -> None:
    config = MistralConfig(**SIZES, sliding_window=16)
    refused(AutoModelForCausalLM.from_config(config), "none of its 2 attention layers is a full-attention layer")


def other(kind: str) -> Any:
    config = AutoConfig.for_model(kind, **{**SIZES, "num_key_value_heads": 4, "head_dim": 8})
    model = build(AutoModelForCausalLM.from_config, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # a norm of equal weights commutes with a rotation; trained ones do not
                parameter += torch.linspace(0, 1, len(parameter))
    return model


def test_a_norm_with_weights_after_rotating_is_refused() -> None:
    model = other("hunyuan_v1_dense")
    stock = logits_of(model, IDS)
    refused(model, "failed the parity check.*Its scores depend on absolute positions, not on distances alone")
    same(logits_of(model, IDS), stock)


@pytest.mark.parametrize("kind", ["phi", "stablelm", "persimmon"])
def test_models_that_rotate_a_slice_of_each_head_are_served(kind: str) -> None:
    model = other(kind)
    stock = logits_of(model, IDS)
    with PositionFree().on(model):
        same(logits_of(model, IDS), stock)


def test_the_self_check_of_a_loaded_model_is_not_fooled_by_one_token(tmp_path: Any) -> None:
    """A single token attends to itself whatever its position is, and so do equal ones."""
    other("hunyuan_v1_dense").save_pretrained(tmp_path)
    key = {"version": 1, "methods": [PositionFree().spec()]}
    for ids in (text(1, 1), torch.full((1, 9), 5), IDS):
        with pytest.raises(ValueError, match="failed the parity check"):
            logits_of(AutoModelForCausalLM.from_pretrained(tmp_path, hf_longctx=key), ids)


def test_the_self_check_of_a_loaded_model_passes_under_autocast(tmp_path: Any) -> None:
    tiny().save_pretrained(tmp_path)
    key = {"version": 1, "methods": [METHOD.spec()]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert logits_of(AutoModelForCausalLM.from_pretrained(tmp_path, hf_longctx=key), IDS).isfinite().all()


def test_rope_that_moves_with_the_length_is_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = tiny("llama", rope_parameters=rope)
    before = fingerprint(model)
    with pytest.raises(ValueError, match="'dynamic' changes its frequencies"):
        METHOD.apply(model)
    assert fingerprint(model) == before


def test_attention_dropout_is_refused_where_it_is_applied(method: Any) -> None:
    model, plain = tiny("llama", attention_dropout=0.1), tiny("llama")
    with method.on(model), method.on(plain):
        same(logits_of(model, IDS), logits_of(plain, IDS))  # inference drops nothing out
        model.train()
        with pytest.raises(ValueError, match=r"dropout=0\.1.*attention_dropout.*config"):
            model(IDS, labels=IDS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [7, 12])
def test_positions_that_are_not_as_many_as_the_tokens(length: int, family: str, method: Any) -> None:
    model, ids = tiny(family), IDS[:, :9]
    with method.on(model):
        ours = logits_of(model, ids)
        with pytest.raises(ValueError, match=rf"position_ids of shape \(1, {length}\): 9 tokens are read. Pass one"):
            model(ids, position_ids=torch.arange(length)[None])
        same(logits_of(model, ids), ours)


# -- patches -----------------------------------------------------------------------------------------------------------
def test_undo_out_of_order_is_an_error_and_changes_nothing() -> None:
    model = tiny()
    first = METHOD.apply(model)
    ours, before = logits_of(model, IDS), fingerprint(model)
    with pytest.raises(ValueError, match="is already applied to"):
        PositionFree().apply(model)
    assert fingerprint(model) == before
    second = hf_longctx.Patch(method=PositionFree(), model=first.model)  # what a second kind of method would leave
    with second.recording():
        second.set(model, "mark", 1)
    with pytest.raises(RuntimeError, match=r"is below PositionFree\(\).*Undo the newer one first"):
        first.undo()
    same(logits_of(model, IDS), ours)
    assert model.mark == 1
    second.undo()
    assert not hasattr(model, "mark")
    first.undo()
    for patch in (first, second):
        with pytest.raises(RuntimeError, match="nothing to undo"):
            patch.undo()
    hf_longctx.undo(model)  # a model without patches is left alone


def test_an_undo_inside_the_block_ends_it_early() -> None:
    def fail_after_undo(model: Any) -> None:
        hf_longctx.undo(model)
        raise KeyError("the user's")

    model = tiny()
    before = fingerprint(model)
    with METHOD.on(model):
        hf_longctx.undo(model)
        assert fingerprint(model) == before
    with pytest.raises(KeyError, match="the user's"), METHOD.on(model):
        fail_after_undo(model)
    assert fingerprint(model) == before
    with pytest.raises(RuntimeError, match="Undo the newer one first"), RopeScaling(factor=2).on(model):
        METHOD.apply(model)


def test_a_patch_is_named_by_its_method() -> None:
    model = tiny()
    patch = METHOD.apply(model)
    assert "LMInfinite(n_global=2, n_local=6" in repr(patch)
    assert len(repr(patch)) < 300


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_whose_forward_was_replaced_on_the_object_is_refused(family: str, layer: int, method: Any) -> None:
    model = tiny(family)
    modules = full_attention_layers(find_decoder(model))
    module = modules[min(layer, len(modules) - 1)]  # of Gemma3 one layer is of full attention
    stock = type(module).forward
    module.forward = types.MethodType(lambda self, *args, **kwargs: stock(self, *args, **kwargs), module)
    before, expected = fingerprint(model), logits_of(model, IDS)
    words = rf"^{type(module).__name__}: the forward of this module was replaced .*{type(method).__name__}.*del module"
    with pytest.raises(ValueError, match=words):
        method.apply(model)
    with pytest.raises(ValueError, match="was replaced on the object itself, so shared_prefix"):
        shared_prefix(model, IDS[0]).__enter__()
    assert fingerprint(model) == before
    same(logits_of(model, IDS), expected)
    del module.forward
    with method.on(model):  # what is put around the method's own forward works
        with_method, inner, seen = logits_of(model, IDS), module.forward, []
        module.forward = lambda *args, **kwargs: seen.append(1) or inner(*args, **kwargs)
        same(logits_of(model, IDS), with_method)
        assert seen
        del module.forward
    same(logits_of(model, IDS), expected)
