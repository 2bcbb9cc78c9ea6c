"""Caches of models with a recurrence beside attention: copied, pickled, and rows chosen, they continue as before."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import LMInfinite
from hf_longctx.upstream.caches import given_cache
from tests.contract.registry import same
from tests.families.table import model_of
from tests.tiny import logits_of, text

IDS, NEXT = text(2, 24), text(2, 1, seed=5)
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda cache: pickle.loads(pickle.dumps(cache))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("family", ["falcon_h1", "zamba2"])
def test_a_copied_cache_continues_as_the_cache(family: str, copied: Callable[[Any], Any]) -> None:
    model = model_of(family)
    LMInfinite(n_global=3, n_local=7).apply(model)
    cache = DynamicCache(config=model.config)
    logits_of(model, IDS, **given_cache(model, cache))
    other = copied(cache)
    wanted = logits_of(model, NEXT, **given_cache(model, cache))
    same(logits_of(model, NEXT, **given_cache(model, other)), wanted)


def test_rows_of_a_cache_continue_as_rows_alone() -> None:
    model = model_of("falcon_h1")
    LMInfinite(n_global=3, n_local=7).apply(model)
    cache = DynamicCache(config=model.config)
    logits_of(model, IDS, **given_cache(model, cache))
    alone = copy.deepcopy(cache)
    wanted = logits_of(model, NEXT, **given_cache(model, alone))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 1]))
    cache.reorder_cache(torch.tensor([1, 0, 2]))
    rows = [1, 0, 0]
    torch.testing.assert_close(logits_of(model, NEXT[rows], **given_cache(model, cache)), wanted[rows])
