"""What was read or written inside `torch.inference_mode()` is continued outside of it, and the other way round."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup, InfLLM, LMInfinite, PositionFree, StreamingLLM, shared_prefix, stream
from hf_longctx.upstream.caches import generate_cache, given_cache
from tests.contract.registry import close, same
from tests.tiny import left_padded, logits_of, text, tiny

METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=8),
    "top_k": LMInfinite(n_global=2, n_local=8, top_k=3, top_k_from_layer=0),
    "code_lookup": CodeLookup(n_global=2, n_local=8, top_k=3, shortlist=4),
    "infllm": InfLLM(n_global=2, n_local=8, block_size=4, top_k=2),
    "streaming_llm": StreamingLLM(n_sink=2, window=8),
    "position_free": PositionFree(),
}
Mode = Callable[[], AbstractContextManager[Any]]
INSIDE, OUTSIDE = torch.inference_mode, torch.no_grad
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
families = pytest.mark.parametrize("family", ["llama", "gemma3"])
THERE, BACK = (INSIDE, OUTSIDE), (OUTSIDE, INSIDE)
crossings = pytest.mark.parametrize("modes", [THERE, BACK, THERE + THERE], ids=["out", "in", "out and in"])


def read_on(model: Any, modes: tuple[Mode, ...]) -> Tensor:
    """Single tokens, a chunk, rows chosen again and a copy, in each of the modes."""
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (9, 30)])
    cache, pos, found = DynamicCache(config=model.config), (mask.cumsum(1) - 1).clamp(min=0), []
    with modes[0]():
        logits_of(model, ids, attention_mask=mask, position_ids=pos, **given_cache(model, cache))
    for i, mode in enumerate(modes):
        with mode():
            for n in (1, 1, 3, 1, 1):
                mask = torch.cat([mask, mask.new_ones(2, n)], 1)
                pos = mask.cumsum(1)[:, -n:] - 1
                new = {"attention_mask": mask, "position_ids": pos, **given_cache(model, cache)}
                found.append(logits_of(model, text(2, n, seed=n + i), **new).clone())
        with modes[(i + 1) % len(modes)]():
            cache.reorder_cache(torch.tensor([1, 0]))
            mask = mask.flip(0)
            cache = copy.deepcopy(cache)
    return torch.cat(found, 1)


@crossings
@families
@every
def test_a_cache_is_continued_in_the_other_mode(method: Any, family: str, modes: tuple[Mode, ...]) -> None:
    model = tiny(family, **({"sliding_window": 512} if family == "gemma3" else {}))
    with method.on(model):
        close(read_on(model, modes), read_on(model, (OUTSIDE,) * len(modes)))


@crossings
@every
def test_so_are_beams_of_another_turn(method: Any, modes: tuple[Mode, ...]) -> None:
    model, found = tiny(), []
    with method.on(model):
        for turns in (modes, (OUTSIDE,) * len(modes)):
            said, cache = text(1, 30), DynamicCache(config=model.config)
            for turn, mode in enumerate(turns):
                with mode():
                    said = model.generate(said, **generate_cache(cache), max_new_tokens=6, do_sample=False).clone()
                    said = torch.cat([said, text(1, 2, seed=turn)], 1)
            cache.batch_repeat_interleave(2)
            logits = [logits_of(model, text(2, 1, seed=9), **given_cache(model, cache))]
            cache.reorder_cache(torch.tensor([1, 1]))
            found.append(torch.cat([*logits, logits_of(model, text(2, 1, seed=8), **given_cache(model, cache))], 1))
    close(*found)


@crossings
@every
def test_so_is_a_stream(method: Any, modes: tuple[Mode, ...]) -> None:
    model, found = tiny(), []
    with method.on(model):
        for turns in (modes, (OUTSIDE,) * len(modes)):
            with turns[0]():
                reader = stream(model, text(1, 40)[0], chunk=16, bounded=False)
            tokens = reader.generate(do_sample=False)
            for mode in turns:
                with mode():
                    found += [next(tokens) for _ in range(5)]
    assert found[: len(found) // 2] == found[len(found) // 2 :]


@crossings
@families
def test_so_are_turns_after_a_shared_prefix(family: str, modes: tuple[Mode, ...]) -> None:
    model, found = tiny(family), []
    for turns in (modes, (OUTSIDE,) * len(modes)):
        with shared_prefix(model, text(1, 20)[0]) as prefix:
            said, cache = text(2, 4, seed=1), prefix.cache()
            for turn, mode in enumerate(turns):
                with mode():
                    said = prefix.generate(said, cache=cache, max_new_tokens=6, do_sample=False)
                    said = torch.cat([said, text(2, 1, seed=turn)], 1)
                    cache.reorder_cache(torch.tensor([1, 0]))
                    said = said.flip(0)
        found.append(said)
    same(*found)
