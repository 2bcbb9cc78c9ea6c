"""A checkpoint that names a cache (Gemma 2 and 3: "hybrid", others "static") is served: a cache of ours replaces it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from hf_longctx import LMInfinite, PositionFree, StreamingLLM, stream
from hf_longctx.editing.session import EditSession
from hf_longctx.evaluation.answer import answer
from hf_longctx.generation.share_beginning import share_beginning
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.sharing.prefix import shared_prefix
from hf_longctx.upstream.caches import generate_cache
from tests.contract.registry import same
from tests.sharing.prefixes import DOCUMENT, IDS, MASK
from tests.tiny import text, tiny, tokenizer

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
SEGMENTS = XL3M(window=40, segment=8, overlap=2)
METHOD = LMInfinite(n_global=2, n_local=12)


def prefix(model: Any) -> Any:
    with shared_prefix(model, DOCUMENT) as made:
        cache = made.cache()
        first = made.generate(IDS, attention_mask=MASK, past_key_values=cache, **GREEDY)
        mask = torch.cat([MASK, torch.ones(len(first), first.shape[1] - MASK.shape[1] + 2, dtype=torch.long)], 1)
        more = torch.cat([first, text(len(first), 2)], 1)
        turns = made.generate(more, attention_mask=mask, past_key_values=cache, **GREEDY)
        return turns, made.generate(num_beams=2, num_return_sequences=2, **GREEDY)


def session(model: Any) -> Any:
    made = EditSession(model, tokenizer(), " ".join(f"w{i}" for i in text(1, 30)[0].tolist()), repair=4)
    made.replace(0, 2, "w9")
    return made.complete(5, do_sample=False)


def method(model: Any) -> Any:
    found = []
    for one in (METHOD, StreamingLLM(n_sink=2, window=14), PositionFree()):
        with one.on(model):
            cache = DynamicCache()
            ids = model.generate(text(2, 30), **generate_cache(cache), **GREEDY)
            found += [ids, model.generate(torch.cat([ids, text(2, 3)], 1), **generate_cache(cache), **GREEDY)]
            found.append(model.generate(text(2, 30), num_beams=2, **GREEDY))
            found.append(model.generate(text(1, 90), custom_generate=SEGMENTS, question=6, **GREEDY))
            found.append(answer(model, tokenizer(), text(2, 9).tolist(), 4))
            found.append(list(stream(model, text(1, 30)[0], bounded=False).generate(**GREEDY)))
    return found


def xl3m(model: Any) -> Any:
    return model.generate(text(1, 90), custom_generate=SEGMENTS, question=6, **GREEDY)


def beginning(model: Any) -> Any:
    ids = torch.cat([DOCUMENT.expand(3, -1), text(3, 4)], 1)
    return model.generate(ids, custom_generate=share_beginning, **GREEDY)


@pytest.mark.parametrize("name", ["static", "hybrid", "dynamic"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("use", [prefix, session, method, xl3m, beginning])
def test_what_a_checkpoint_says_of_its_cache(use: Any, family: str, name: str) -> None:
    model = tiny(family)
    expected = use(model)
    before = copy.deepcopy(model.generation_config)
    model.generation_config.cache_implementation = name
    got = use(model)
    for one, other in zip(expected, got, strict=True) if isinstance(got, list | tuple) else [(expected, got)]:
        same(one, other) if isinstance(one, torch.Tensor) else None
        assert isinstance(one, torch.Tensor) or one == other
    assert model.generation_config.cache_implementation == name
    model.generation_config.cache_implementation = None
    assert model.generation_config == before


def test_what_a_call_says_of_it_is_refused() -> None:
    model = tiny()
    given = {"generation_config": GenerationConfig(cache_implementation="static", **GREEDY)}
    with shared_prefix(model, DOCUMENT) as made:
        for asked in ({"cache_implementation": "static"}, given):
            with pytest.raises(ValueError, match="cache_implementation"):
                made.generate(IDS, attention_mask=MASK, **asked)
    with METHOD.on(model):
        for asked in ({"cache_implementation": "static"}, given):
            with pytest.raises(ValueError, match="cache_implementation='static': a model with a method"):
                model.generate(IDS, attention_mask=MASK, **asked)
    made_session = EditSession(model, tokenizer(), "w3 w4 w5")
    for asked in ({"cache_implementation": "static"}, given):
        with pytest.raises(ValueError, match="cache_implementation"):
            made_session.complete(2, **asked)
