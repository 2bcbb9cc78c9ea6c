"""What is copied goes on by itself, as the original would have, and shares the model that it reads through."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite, PositionFree, StreamingLLM, stream
from hf_longctx.editing.session import EditSession
from hf_longctx.sharing.prefix import shared_prefix
from hf_longctx.streaming.chat import Chat
from hf_longctx.upstream.caches import generate_cache
from tests.contract.registry import same
from tests.sharing.prefixes import DOCUMENT, GREEDY, IDS, MASK
from tests.tiny import text, tiny, tokenizer

METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=12),
    "lm_infinite top_k": LMInfinite(n_global=2, n_local=12, top_k=4, top_k_from_layer=1),
    "code_lookup": CodeLookup(n_global=2, n_local=12, top_k=4),
    "streaming_llm": StreamingLLM(n_sink=2, window=14),
    "position_free": PositionFree(),
}
FAMILIES = ("llama", "gemma3")


@pytest.fixture(autouse=True)
def _no_weight_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: nn.Module, memo: Any) -> nn.Module:
        raise AssertionError(f"{type(self).__name__} was copied")

    monkeypatch.setattr(nn.Module, "__deepcopy__", refuse, raising=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("filled", [False, True])
def test_cache_of_a_prefix(family: str, filled: bool) -> None:
    model = tiny(family)
    with shared_prefix(model, DOCUMENT) as whole:
        for prefix in (whole, whole.extend(text(1, 4, seed=8)[0])):
            cache, ids, mask = prefix.cache(), IDS, MASK
            if filled:
                ids = prefix.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
                mask = torch.cat([MASK, torch.ones(len(ids), ids.shape[1] - MASK.shape[1], dtype=torch.long)], 1)
            more, other = (torch.cat([ids, text(len(ids), n, seed=n)], 1) for n in (3, 5))

            def go_on(cache: Any, ids: Tensor, prefix: Any = prefix, mask: Tensor = mask) -> Tensor:
                seen = torch.cat([mask, torch.ones(len(ids), ids.shape[1] - mask.shape[1], dtype=torch.long)], 1)
                return prefix.generate(ids, attention_mask=seen, past_key_values=cache, **GREEDY)

            twin, third = copy.deepcopy(cache), copy.deepcopy([cache])[0]
            assert twin.owner is prefix
            assert twin.current is twin.layers[0].current is twin.layers[1].current is not cache.current
            expected, before = go_on(cache, more), twin.get_seq_length()
            assert twin.get_seq_length() == before
            same(go_on(twin, more), expected)
            assert torch.equal(go_on(third, other)[:, : other.shape[1]], other)
            assert copy.deepcopy(prefix) is prefix


def test_what_cannot_be_pickled_says_what_to_do() -> None:
    with shared_prefix(tiny(), DOCUMENT) as prefix:
        with pytest.raises(TypeError, match=r"prefix\.save\(path\)\), use load_prefix\(model, path\)"):
            pickle.dumps(prefix.cache())
        with pytest.raises(TypeError, match=r"prefix\.save\(path\), and use load_prefix\(model, path\)"):
            pickle.dumps(prefix)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_cache_under_a_method(method: str, family: str) -> None:
    model, cache = tiny(family), DynamicCache()
    with METHODS[method].on(model):
        ids = model.generate(text(2, 30), **generate_cache(cache), **GREEDY)
        twin, pickled = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
        more = torch.cat([ids, text(2, 3, seed=3)], 1)
        expected = model.generate(more, **generate_cache(cache), **GREEDY)
        for other in (twin, pickled):
            assert other.get_seq_length() == ids.shape[1] - 1
            same(model.generate(more, **generate_cache(other), **GREEDY), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_reader(method: str, family: str) -> None:
    model = tiny(family)
    with METHODS[method].on(model):
        told: list[int] = []
        reader = stream(model, text(1, 70)[0], chunk=16, bounded=False, progress=told.append)
        written = list(reader.generate(max_new_tokens=4, do_sample=False))
        twin = copy.deepcopy(reader)
        assert twin.model is reader.model is model
        assert twin.position == reader.position
        expected = list(reader.generate(max_new_tokens=4, do_sample=False))
        assert twin.position == reader.position - 4
        assert len(told) == 5
        assert list(twin.generate(max_new_tokens=4, do_sample=False)) == expected
        reader.read(text(1, 9, seed=4)[0])
        twin.read(text(1, 9, seed=4)[0])
        same(twin.logits, reader.logits)
        assert len(written) == 4
    with pytest.raises(RuntimeError, match="carries none now"):
        copy.deepcopy(reader).read([3])


def test_session() -> None:
    model, words = tiny(), " ".join(f"w{i}" for i in text(1, 40)[0].tolist())
    session = EditSession(model, tokenizer(), words, repair=4)
    session.replace(0, 2, "w9")
    twin = copy.deepcopy(session)
    assert twin.model is model
    assert twin.tokenizer is session.tokenizer
    session.replace(4, 6, "w7")
    assert twin.text != session.text
    twin.replace(4, 6, "w7")
    assert twin.complete(5, do_sample=False) == session.complete(5, do_sample=False)
    twin.undo()
    assert twin.text != session.text


def test_chat() -> None:
    made = tokenizer()
    made.chat_template = "{% for m in messages %}w3 {{ m.content }} w4 {% endfor %}"
    model = tiny()
    with METHODS["lm_infinite"].on(model):
        chat = Chat(stream(model), made)
        list(chat.answer("w5 w6", max_new_tokens=4, do_sample=False))
        twin = copy.deepcopy(chat)
        assert twin.tokenizer is made
        assert twin.reader.model is model
        expected = list(chat.answer("w7", max_new_tokens=6, do_sample=False))
        assert list(twin.answer("w7", max_new_tokens=6, do_sample=False)) == expected


def test_model_that_is_copied_with_its_reader_is_the_copys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nn.Module, "__deepcopy__")
    model = tiny()
    METHODS["lm_infinite"].apply(model)
    other, reader = copy.deepcopy((model, stream(model, text(1, 40)[0])))
    assert reader.model is other is not model
    assert reader.logits.isfinite().all()
