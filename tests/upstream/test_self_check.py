"""The self-check refuses a version of transformers, or a model, that a method would decode wrongly."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MiniMaxConfig, MiniMaxForCausalLM
from transformers.models.llama import modeling_llama

import hf_longctx
from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.upstream import caches, versions
from tests.contract.registry import close, fingerprint, same
from tests.families.table import model_of
from tests.tiny import FAMILIES, MORE_FAMILIES, SIZES, build, left_padded, logits_of, text, tiny

METHODS = [PositionFree(), LMInfinite(n_global=2, n_local=6), StreamingLLM(n_sink=2, window=6)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)

pytestmark = pytest.mark.floor  # what a new release of transformers breaks first


@pytest.fixture(autouse=True)
def names_are_looked_up_again() -> Iterator[None]:
    """What is remembered of a signature under other names is forgotten."""
    yield
    caches.taken_name.cache_clear()


def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a package would find it that is older than the argument's name."""
    for module in (caches, hf_longctx.attention.forward):
        monkeypatch.setattr(module, "CACHE_NAMES", ("what_it_was_called_before",))


@each
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_a_renamed_cache_is_refused_at_apply_and_nothing_is_left_behind(
    method: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny(family), text(1, 20)
    before, stock = fingerprint(model), logits_of(model, ids)
    unknown(monkeypatch)
    with pytest.raises(ValueError, match=r"refused by the self-check.* transformers \d.*; hf_longctx is tested with"):
        method.apply(model)
    assert fingerprint(model) == before
    same(logits_of(model, ids), stock)


@each
def test_a_loaded_model_is_refused_in_every_forward(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with method.on(tiny("llama")) as model:
        model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    with monkeypatch.context() as broken:
        unknown(broken)
        for _ in range(2):
            with pytest.raises(ValueError, match="refused by the self-check"):
                loaded(text(1, 9))
    with method.on(tiny("llama")) as model:
        same(logits_of(loaded, text(1, 9)), logits_of(model, text(1, 9)))


@each
def test_attention_that_mixes_cached_keys_is_refused(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks no further back than the chunk: full forwards agree, cached ones do not."""
    repeat = modeling_llama.apply_rotary_pos_emb
    stock = modeling_llama.LlamaAttention.forward

    def forward(self: Any, hidden_states: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        shifted = torch.cat([hidden_states[:, :1], hidden_states[:, :-1]], 1)
        return stock(self, hidden_states + shifted, position_embeddings=position_embeddings, **kwargs)

    forward.__wrapped__ = stock  # type: ignore[attr-defined]  (the signature, and with it the cache's name)
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)
    assert modeling_llama.apply_rotary_pos_emb is repeat
    with pytest.raises(ValueError, match="through a cache of first tokens and a window its output differs by"):
        method.apply(tiny("llama"))


def minimax() -> Any:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    kinds = {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}
    return build(MiniMaxForCausalLM, MiniMaxConfig(**SIZES, **experts, **kinds, head_dim=8))


@each
def test_a_model_that_loses_padding_by_itself_refuses_it_by_name(method: Any) -> None:
    """Stock MiniMax takes the length of its cache from a layer without keys: rows that are padded come out wrong."""
    model, (ids, mask) = minimax(), left_padded([text(1, n, seed=n)[0] for n in (9, 17)])
    with method.on(model), pytest.raises(ValueError, match="padding is lost, also without"):
        model.generate(ids, attention_mask=mask, max_new_tokens=3)


@each
@pytest.mark.parametrize("family", ["jetmoe", "diffllama", "minimax"])
def test_keys_and_values_that_change_after_the_cache_are_right_in_cached_steps(method: Any, family: str) -> None:
    model, ids = minimax() if family == "minimax" else model_of(family), text(2, 30)
    with method.on(model):
        settings = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        for n in (3, 14, 30):  # some first tokens are still to come; within the window; beyond it
            out = model.generate(ids[:, :n], **settings)
            whole = logits_of(model, out.sequences, use_cache=False)[:, n - 1 : -1]
            close(torch.stack(out.logits, 1), whole, f"{n} tokens")
            if family == "minimax":
                continue  # transformers does not chunk a prefill over a cache that the model brings itself
            out = model.generate(ids[:, :n], prefill_chunk_size=4, **settings)
            close(torch.stack(out.logits, 1), whole, f"{n} tokens in chunks")


def test_a_layer_that_should_write_a_cache_and_gets_none_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    with METHODS[1].on(model):
        unknown(monkeypatch)
        with pytest.raises(RuntimeError, match="use_cache=True and without a cache under a name"):
            model(text(1, 9), use_cache=True)


def test_the_self_check_leaves_modes_and_hooks_alone() -> None:
    model = tiny("llama").train()
    state = torch.get_rng_state()
    patch = METHODS[1].apply(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    patch.undo()


def test_a_newer_transformers_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    versions.warn_of_untested.cache_clear()
    monkeypatch.setattr(versions.transformers, "__version__", "5.99.1")
    with caplog.at_level(logging.WARNING, logger="hf_longctx"):
        for _ in range(2):
            with METHODS[1].on(tiny("llama")):
                pass
    assert [r.message for r in caplog.records if "5.99.1" in r.message] == [
        f"transformers 5.99.1 is newer than what hf_longctx was tested with (up to {versions.TESTED[-1]}); the "
        f"self-check passed."
    ]
    versions.warn_of_untested.cache_clear()


@pytest.mark.parametrize(("release", "newer"), [("5.17.0", False), ("5.24.9", False), ("5.25.0", True), ("6.0", True)])
def test_which_releases_are_newer(release: str, newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.transformers, "__version__", release)
    assert versions.untested() is newer


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this release of transformers were newer than those tested."""
    versions.warn_of_untested.cache_clear()
    monkeypatch.setattr(versions.transformers, "__version__", "5.99.1")
    yield
    versions.warn_of_untested.cache_clear()


def other_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that scales what a cached step embeds: each layer is right, and every text that is read at once."""
    stock = modeling_llama.LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        scale = 1.5 if caches.cache_in(kwargs) is not None and input_ids.shape[1] == 1 else 1.0
        hook = self.embed_tokens.register_forward_hook(lambda module, args, output: output * scale)
        try:
            return stock(self, input_ids=input_ids, **kwargs)
        finally:
            hook.remove()

    forward.__wrapped__ = stock  # type: ignore[attr-defined]  (the signature, and with it the cache's name)
    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)


@each
def test_a_newer_transformers_whose_cached_steps_differ_is_refused(
    method: Any, newer: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with method.on(tiny("llama")) as model:
        model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = tiny("llama")
    before = fingerprint(model)
    other_steps(monkeypatch)
    refused = r"in a step over the cache: its output differs by \d.*hf_longctx is tested with"
    with pytest.raises(ValueError, match=refused):
        method.apply(model)
    assert fingerprint(model) == before
    for _ in range(2):
        with pytest.raises(ValueError, match=refused):
            loaded(text(1, 9))


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_a_newer_transformers_that_is_right_is_served(family: str, newer: None) -> None:
    for method in METHODS:
        with method.on(tiny(family)) as model:
            assert logits_of(model, text(1, 9)).isfinite().all()


def test_a_loaded_model_names_a_newer_transformers_after_its_first_forward(
    newer: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with METHODS[1].on(tiny("llama")) as model:
        model.save_pretrained(tmp_path)
    versions.warn_of_untested.cache_clear()
    caplog.clear()
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="hf_longctx"):
        loaded(text(1, 9))
    assert sum("5.99.1" in record.message for record in caplog.records) == 1
