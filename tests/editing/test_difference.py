"""What two texts have in common: right on any texts, all of it on ordinary ones, and fast on long ones."""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch import Tensor

from hf_longctx.editing.difference import matches


def common(old: Tensor, new: Tensor) -> int:
    """How many tokens the matches cover; they must be true, in order and apart."""
    found, o_end, n_end = matches(old.numpy(), new.numpy()), 0, 0
    for i, (o, n, length) in enumerate(found):
        assert length > 0
        assert o >= o_end
        assert n >= n_end
        assert i == 0 or (o, n) != (o_end, n_end)
        assert torch.equal(old[o : o + length], new[n : n + length])
        o_end, n_end = o + length, n + length
    return sum(length for _, _, length in found)


def edited(ids: Tensor, places: int, vocab: int) -> Tensor:
    new = ids.tolist()
    for _ in range(places):
        at = random.randrange(len(new) + 1)
        new[at : at + random.choice([0, 1, 30])] = [random.randrange(vocab) for _ in range(random.choice([0, 1, 20]))]
    return torch.tensor(new, dtype=torch.long)


@pytest.mark.parametrize("vocab", [2, 5, 1000])
def test_matches_are_true_and_in_order(vocab: int) -> None:
    for length in (0, 1, 7, 90, 400, 1000):
        ids = torch.randint(0, vocab, (length,))
        common(ids, edited(ids, 4, vocab))
        common(ids, torch.randint(0, vocab, (length // 2,)))
        assert common(ids, ids) == length


def test_several_edits_of_a_long_text_are_found_fast() -> None:
    ids = torch.randint(0, 50_000, (100_000,))
    new = edited(ids, 20, 50_000)
    begun = time.perf_counter()
    assert common(ids, new) > 99_000
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize("what", ["zeros", "period", "other", "reversed", "swapped"])
def test_hard_texts_take_no_longer(what: str) -> None:
    ids = torch.randint(0, 50_000, (100_000,))
    both = {
        "zeros": (ids * 0, torch.cat([ids[:1] * 0 + 1, ids * 0, ids[:2] * 0 + 1])),
        "period": (torch.arange(100_000) % 50, torch.arange(3, 100_000) % 50 + (torch.arange(99_997) % 9_999 == 0)),
        "other": (ids, torch.randint(0, 50_000, (100_000,))),
        "reversed": (ids, ids.flip(0)),
        "swapped": (ids, torch.cat([ids[50_000:], ids[:50_000]])),
    }
    begun = time.perf_counter()
    common(*both[what])
    assert time.perf_counter() - begun < 1
