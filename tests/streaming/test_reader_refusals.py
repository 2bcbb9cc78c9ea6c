"""What `stream` refuses, what ends a reader, and what its errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hf_longctx
from hf_longctx import Giraffe, LMInfinite, PositionFree, RopeScaling, stream
from tests.streaming.test_reader import GREEDY, METHODS, generated
from tests.tiny import VOCAB, text, tiny


@pytest.mark.parametrize(
    "methods",
    [
        [],
        [RopeScaling(type="yarn", factor=2.0)],
        [Giraffe()],
        [PositionFree()],
        [LMInfinite(n_local=16, top_k=2, top_k_from_layer=1)],
    ],
    ids=lambda methods: methods[0].name if methods else "stock",
)
def test_model_whose_memory_grows_is_refused_unless_asked_for(methods: list[Any]) -> None:
    model, ids = tiny(), text(1, 40)
    for method in methods:
        method.apply(model)
    with pytest.raises(ValueError, match=r"of the 2 layers .* keep every key.*or pass bounded=False"):
        stream(model, ids[0])
    reader = stream(model, ids[0], bounded=False)
    assert list(reader.generate(**GREEDY)) == generated(model, ids, **GREEDY)


def test_stock_model_with_sliding_windows_only_is_bounded_by_itself() -> None:
    model, ids = tiny("mistral", sliding_window=8), text(1, 40)
    assert list(stream(model, ids[0]).generate(**GREEDY)) == generated(model, ids, **GREEDY)


def test_method_that_is_undone_meanwhile_is_noticed_and_may_come_back() -> None:
    model, ids = tiny(), text(1, 40)
    patch = METHODS["lm_infinite"].apply(model)
    reader = stream(model, ids[0])
    expected = list(stream(model, ids[0]).generate(**GREEDY))
    tokens = reader.generate(**GREEDY)
    came = [next(tokens)]
    patch.undo()
    with pytest.raises(RuntimeError, match=r"carried \[LMInfinite.* carries none now"):
        next(tokens)
    with pytest.raises(RuntimeError, match="carries none now"):
        reader.read([3])
    METHODS["lm_infinite"].apply(model)
    assert [*came, *reader.generate(max_new_tokens=29, do_sample=False)] == expected
    RopeScaling(type="linear", factor=2.0).apply(model)
    with pytest.raises(RuntimeError, match=r"carries \[LMInfinite.*RopeScaling"):
        reader.read([3])


def test_forward_that_breaks_off_half_way_ends_the_reader_and_a_refused_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = tiny(), text(1, 40)
    with METHODS["lm_infinite"].on(model):
        reader = stream(model, ids[0])
        name = model.config._attn_implementation
        model.config._attn_implementation_internal = "eager"
        with pytest.raises(RuntimeError, match="attn_implementation was changed"):
            reader.read([3])
        model.config._attn_implementation_internal = name
        reader.read([3])
        assert reader.position == 41
        monkeypatch.setattr(model.model.layers[1], "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reader.read([3])
        with pytest.raises(RuntimeError, match="failed half-way at position 41"):
            reader.read([3])


def interrupt(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def test_reader_needs_something_to_go_on_from() -> None:
    model = tiny()
    with METHODS["lm_infinite"].on(model):
        reader = stream(model)
        assert reader.position == reader.nbytes == 0
        with pytest.raises(ValueError, match="nothing has been read yet"):
            reader.generate()
        with pytest.raises(ValueError, match="nothing has been read yet"):
            _ = reader.logits
        reader.read([])
        reader.read([3])
        assert reader.logits.shape == (VOCAB,)
        with pytest.raises(ValueError, match="chunk=0"):
            stream(model, [3], chunk=0)
        model.train()
        with pytest.raises(ValueError, match="train mode"):
            stream(model, [3])


def test_reader_of_a_loaded_and_of_an_adapted_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model, ids = tiny(), text(1, 40)
    METHODS["streaming_llm"].apply(model)
    expected = list(stream(model, ids[0]).generate(**GREEDY))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert list(stream(loaded, ids[0]).generate(**GREEDY)) == expected
    adapted = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"])).eval()
    METHODS["streaming_llm"].apply(adapted)
    assert list(stream(adapted, ids[0]).generate(**GREEDY)) == expected
    assert "position=70" in repr(hf_longctx.stream(loaded, [3] * 70))


def test_out_of_memory_says_what_was_asked_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    with LMInfinite(n_local=8).on(model):
        reader = hf_longctx.stream(model, [5, 6, 7], chunk=8)

        def full(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        with monkeypatch.context() as patched:
            patched.setattr(type(model), "forward", full)
            with pytest.raises(torch.OutOfMemoryError, match=r"reading 8 tokens at once at position 3 .* chunk=2"):
                reader.read(range(5, 13))
        reader.read(range(5, 13))
        assert reader.position == 11
