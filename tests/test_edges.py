"""What happens at the edges: failures half-way, other people's hooks and wraps, positions with gaps, mixed layouts."""

from __future__ import annotations

import importlib
import io
from typing import Any

import pytest
import torch
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel

import hf_longctx
from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.attention.order import is_regular
from hf_longctx.attention.state import STATE
from hf_longctx.cache import RetrievingLayer, SinkWindowLayer
from hf_longctx.hooks import startup
from hf_longctx.registry import parse
from tests.tiny import logits_of, text, tiny

METHOD = LMInfinite(n_global=2, n_local=6)


def test_a_forward_that_fails_half_way_closes_the_cache_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = tiny("llama"), DynamicCache()
    ids = text(1, 24)
    with METHOD.on(model):
        model(ids[:, :16], past_key_values=cache)
        last = model.model.layers[-1].self_attn.q_proj
        with monkeypatch.context() as broken:
            broken.setattr(last, "forward", _fails)
            with pytest.raises(RuntimeError, match="pulled the plug"):
                model(ids[:, 16:], past_key_values=cache)
        state = vars(model.model)[STATE]
        assert (state.steps, state.opened, state.reading) == ([], [], None)
        assert all(lent.keys is lent.step is lent.sinks is None for lent in state.lent.values())
        assert all(layer.readable_pos is None for layer in cache.layers)
    with pytest.raises(RuntimeError, match="un-rotated keys"):
        model(ids[:, 16:], past_key_values=cache)


def _fails(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("pulled the plug")


def test_positions_with_a_gap_in_the_cache_are_not_taken_for_consecutive() -> None:
    assert is_regular(torch.tensor([[-1, -1, 3, 4], [0, 1, 2, 3]]))
    assert not is_regular(torch.tensor([[0, 1, 5, 6, 7]]))


def test_packed_rows_are_refused_in_a_compiled_graph_too() -> None:
    model, ids = tiny("llama"), text(1, 12)
    packed = torch.cat([torch.arange(6), torch.arange(6)])[None]
    with METHOD.on(model), torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with pytest.raises(RuntimeError, match="one document per row"):
            compiled(ids, position_ids=packed, use_cache=False)


@pytest.mark.parametrize("method", [METHOD, StreamingLLM(window=6), PositionFree()], ids=lambda m: m.name)
def test_frequencies_that_move_with_the_length_are_refused(method: Any) -> None:
    model = tiny("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(ValueError, match="rope_type='dynamic'"):
        method.apply(model)


def test_undo_after_loading_in_a_new_process_leaves_other_hooks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = tiny("llama"), io.BytesIO()
    METHOD.apply(model)
    torch.save(model, file)
    file.seek(0)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a process that has just started
    loaded = torch.load(file, weights_only=False)
    calls: list[int] = []
    loaded.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    same_as_before = torch.equal(logits_of(loaded, text(1, 9)), logits_of(model, text(1, 9)))
    hf_longctx.undo(loaded)
    logits_of(loaded, text(1, 9))
    assert same_as_before
    assert len(calls) == 2


def test_uninstall_leaves_a_later_wrap_of_somebody_else_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = PreTrainedModel.post_init

    def theirs(self: Any) -> None:
        ours(self)

    # whatever uninstall changes is put back when the test ends
    monkeypatch.setattr(PreTrainedConfig, "hf_longctx", vars(PreTrainedConfig)["hf_longctx"])
    prepare = GenerationMixin._prepare_cache_for_generation
    for module, at, name in startup.HOOKS:
        owner = getattr(importlib.import_module(module), at)
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(PreTrainedModel, "post_init", theirs)
    try:
        hf_longctx.uninstall()
        assert PreTrainedModel.post_init is theirs
        assert GenerationMixin._prepare_cache_for_generation is not prepare
        tiny("llama")  # our wrap, under theirs, passes through
    finally:
        monkeypatch.undo()
        hf_longctx.install()  # peft's hooks


def test_extending_a_config_keeps_the_implementation_that_was_chosen() -> None:
    config = tiny("llama").config
    config._attn_implementation = "eager"
    assert hf_longctx.extend_config(config, METHOD)._attn_implementation == "eager"


@pytest.mark.parametrize("settings", [["name=position_free"], ["n_local=4", "n_local=5"]])
def test_a_setting_given_twice_is_an_error(settings: list[str]) -> None:
    with pytest.raises(ValueError, match="given already"):
        parse("lm_infinite", settings)


def test_layers_that_look_nothing_up_keep_their_window_only() -> None:
    model, cache = tiny("llama"), DynamicCache()
    with LMInfinite(n_local=6, top_k=2, top_k_from_layer=1).on(model):
        model(text(1, 30), past_key_values=cache)
    assert [type(layer) for layer in cache.layers] == [SinkWindowLayer] + [RetrievingLayer] * (len(cache.layers) - 1)


def test_applying_keeps_every_modules_training_mode() -> None:
    model = tiny("llama").train()
    model.model.layers[0].self_attn.q_proj.eval()
    with METHOD.on(model):
        assert not model.model.layers[0].self_attn.q_proj.training
        assert model.model.layers[0].self_attn.training


def test_a_mask_shorter_than_what_was_read_is_refused() -> None:
    model, ids = tiny("llama"), torch.randint(3, 60, (1, 9))
    with METHOD.on(model):
        with pytest.raises(ValueError, match=r"attention_mask of shape \(1, 4\): 9 tokens were read"):
            model(ids, attention_mask=torch.ones(1, 4, dtype=torch.long))
        assert model(ids, attention_mask=torch.ones(1, 9, dtype=torch.long)).logits.shape[1] == 9


def test_a_second_thread_is_refused_by_name_and_disturbs_nothing() -> None:
    import threading

    model, ids = tiny("llama"), torch.randint(3, 60, (1, 9))
    errors: list[str] = []

    def intrude(*_: Any) -> None:
        def run() -> None:
            try:
                model(ids)
            except RuntimeError as error:
                errors.append(str(error))

        other = threading.Thread(target=run)
        other.start()
        other.join()

    with METHOD.on(model):
        truth = model(ids).logits
        handle = model.model.layers[1].register_forward_pre_hook(intrude)
        assert torch.equal(model(ids).logits, truth)
        handle.remove()
        assert "serves one thread at a time" in errors[0]
        assert torch.equal(model(ids).logits, truth)


@pytest.mark.parametrize("shape", [(1, 0), (0, 4), (5,)])
@pytest.mark.parametrize("read", [False, True])
def test_a_forward_without_tokens_is_refused_by_name(shape: tuple[int, ...], read: bool) -> None:
    """Before and after the first forward, by which a model shows how it rotates."""
    model, ids = tiny("llama"), torch.randint(3, 60, (1, 9))
    stock = logits_of(model, ids)
    with METHOD.on(model):
        truth = logits_of(model, ids) if read else None
        with pytest.raises(ValueError, match=r"expected \(rows, tokens, hidden size\), of input_ids of shape"):
            model(torch.zeros(shape, dtype=torch.long))
        if truth is not None:
            assert torch.equal(logits_of(model, ids), truth)
    assert torch.equal(logits_of(model, ids), stock)


def test_a_mask_that_hides_what_was_read_as_text_is_named() -> None:
    """As `generate` makes of padding tokens that the model itself wrote in an earlier turn."""
    model, ids = tiny("llama"), torch.randint(3, 60, (1, 9))
    with METHOD.on(model), torch.no_grad():
        cache = DynamicCache()
        model(ids, past_key_values=cache)
        mask = torch.ones(1, 12, dtype=torch.long)
        mask[0, 4] = 0
        with pytest.raises(ValueError, match="attention_mask hides tokens that the cache has read as text"):
            model(ids[:, :3], attention_mask=mask, position_ids=(mask.cumsum(-1) - 1)[:, 9:], past_key_values=cache)
