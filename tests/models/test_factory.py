"""`hf_longctx.models`: any model class of transformers by its name with LongCtx before it, and no other."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import threading
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedConfig

from hf_longctx import applied, extend_config, models, uninstall
from hf_longctx.hooks.startup import install
from hf_longctx.models import factory
from tests.models.conftest import IDS, METHOD, Folders, tokens_of
from tests.tiny import CLASSES, config_of, logits_of, tiny


def ours(name: str) -> Any:
    return getattr(models, f"LongCtx{name}")


@pytest.mark.floor
@pytest.mark.parametrize("family", CLASSES)
def test_every_family_is_the_stock_class_with_the_method(family: str, tmp_path: Any) -> None:
    stock = tiny(family)
    stock.save_pretrained(tmp_path)
    plain = logits_of(stock, IDS)
    METHOD.apply(stock)
    cls = ours(CLASSES[family].__name__)
    model = cls.from_pretrained(tmp_path, methods=METHOD)
    assert type(model) is cls
    assert isinstance(model, CLASSES[family])
    assert torch.equal(logits_of(model, IDS), logits_of(stock, IDS))
    assert torch.equal(tokens_of(model), tokens_of(stock))
    assert torch.equal(logits_of(cls.from_pretrained(tmp_path), IDS), plain)


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification", "Qwen3ForTokenClassification"])
def test_models_with_another_head_and_with_none(name: str, tmp_path: Any) -> None:
    family = "qwen3" if name.startswith("Qwen3") else "llama"
    stock = getattr(transformers, name)(config_of(family, num_labels=3)).eval()
    stock.save_pretrained(tmp_path)
    METHOD.apply(stock)
    model = ours(name).from_pretrained(tmp_path, methods=METHOD)
    expected, found = (m(IDS, use_cache=False) for m in (stock, model))
    assert torch.equal(found[0], expected[0])
    assert model.can_generate() == stock.can_generate()


def test_a_class_is_made_once_and_says_what_it_is() -> None:
    cls = ours("LlamaForCausalLM")
    assert cls is importlib.import_module("hf_longctx.models").LongCtxLlamaForCausalLM
    assert (cls.__module__, cls.__qualname__) == ("hf_longctx.models", "LongCtxLlamaForCausalLM")
    assert cls.stock_class is LlamaForCausalLM
    assert "LlamaForCausalLM" in cls.__doc__
    assert cls.config_class is LlamaForCausalLM.config_class


def test_threads_that_ask_at_once_get_one_class() -> None:
    found: list[Any] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.append(ours("OlmoForCausalLM"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


WRONG = {
    "LongCtxFoo": "Foo does not exist in transformers",
    "LongCtxLamaForCausalLM": "Did you mean 'LongCtxLlamaForCausalLM'",
    "LongCtxLlamaConfig": "LlamaConfig is no model class",
    "LongCtxPreTrainedModel": "PreTrainedModel is a base of model classes",
    "LongCtxLlamaPreTrainedModel": "LlamaPreTrainedModel is a base of model classes",
    "LongCtxAutoModelForCausalLM": "AutoModelForCausalLM is no model class",
    "LongCtx__version__": "__version__ is no model class",
    "longctx_llama": "no attribute 'longctx_llama'",
    "__wrapped__": "no attribute '__wrapped__'",
}


@pytest.mark.parametrize("name", WRONG)
def test_other_names_are_refused_in_words(name: str) -> None:
    with pytest.raises(AttributeError, match=WRONG[name]):
        getattr(models, name)
    assert not hasattr(models, name)
    if name.startswith("LongCtx"):
        with pytest.raises(ImportError, match=WRONG[name]):
            exec(f"from hf_longctx.models import {name}")


def test_names_for_completion_are_all_there() -> None:
    names = {"LongCtxLlamaForCausalLM", "LongCtxQwen3ForCausalLM", "LongCtxxLSTMForCausalLM", "LongCtx"}
    assert names <= set(dir(models))
    assert ours("xLSTMForCausalLM").stock_class is transformers.xLSTMForCausalLM  # begins with a small letter
    starred: dict[str, Any] = {}
    exec("from hf_longctx.models import *", starred)
    assert {name for name in starred if not name.startswith("__")} == {"LongCtx"}


def test_auto_class_makes_no_class_of_its_own() -> None:
    from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

    for name in ("LlamaModel", "GPTNeoXForCausalLM", "Gemma3ForConditionalGeneration", "BertForMaskedLM"):
        cls, stock = ours(name), getattr(transformers, name)
        assert add_generation_mixin_to_remote_model(cls) is cls
        cls.register_for_auto_class("AutoModelForCausalLM")
        assert cls._auto_class is None
        assert cls.can_generate() == stock.can_generate()
        assert cls.is_custom_code() is False
        assert cls._can_set_attn_implementation() == stock._can_set_attn_implementation()


def test_copies_and_pickles(folders: Folders) -> None:
    model = ours("LlamaForCausalLM").from_pretrained(folders.dual)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert type(other) is type(model)
        assert torch.equal(logits_of(other, IDS), folders.extended)
        assert torch.equal(tokens_of(other), folders.tokens)


def test_as_the_stock_class_in_use(folders: Folders) -> None:
    stock = LlamaForCausalLM.from_pretrained(folders.stock)
    model = ours("LlamaForCausalLM").from_pretrained(folders.stock)
    for each in (stock, model):
        each.set_attn_implementation("eager")  # before the method, which refuses another base attention
        METHOD.apply(each)
    assert model.config._attn_implementation == stock.config._attn_implementation
    assert torch.equal(logits_of(model, IDS), logits_of(stock, IDS))
    for each in (stock, model):
        each.train().gradient_checkpointing_enable()
        each(IDS, labels=IDS, use_cache=False).loss.backward()
    assert model.loss_type == stock.loss_type
    grads = zip(model.parameters(), stock.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in grads)


def test_a_compiled_forward(folders: Folders) -> None:
    model = ours("LlamaForCausalLM").from_pretrained(folders.dual)
    compiled = torch.compile(model, backend="eager")
    # compiled sums are in another order
    torch.testing.assert_close(logits_of(compiled, IDS, use_cache=False), folders.extended, atol=1e-4, rtol=1e-4)
    assert [patch.method for patch in applied(compiled)] == [METHOD]


def test_never_the_stock_model_in_silence(folders: Folders) -> None:
    cls, descriptor = ours("LlamaForCausalLM"), vars(PreTrainedConfig)["hf_longctx"]
    uninstall()
    try:
        for load in (
            lambda: cls.from_pretrained(folders.dual),
            lambda: cls.from_pretrained(folders.stock, methods=METHOD),
            lambda: cls._from_config(extend_config(config_of("llama"), METHOD)),
        ):
            with pytest.raises(RuntimeError, match=r"LMInfinite.*hf_longctx\.install\(\)"):
                load()
        stock = cls.from_pretrained(folders.stock)
        assert torch.equal(logits_of(stock, IDS), folders.plain)
    finally:
        install()
        PreTrainedConfig.hf_longctx = descriptor  # the fixture compares identities
    assert torch.equal(logits_of(cls.from_pretrained(folders.dual), IDS), folders.extended)


class Elsewhere(LlamaForCausalLM):
    """A class of other code, under a name that transformers does not have."""


def test_a_class_that_other_code_puts_into_transformers(monkeypatch: pytest.MonkeyPatch, folders: Folders) -> None:
    monkeypatch.setattr(transformers, "Elsewhere", Elsewhere, raising=False)
    monkeypatch.setattr(factory, "_made", dict(factory._made))
    model = ours("Elsewhere").from_pretrained(folders.stock, methods=METHOD)
    assert torch.equal(logits_of(model, IDS), folders.extended)
    assert model.is_custom_code()
    assert Elsewhere.is_custom_code()
