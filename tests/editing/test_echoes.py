"""Phrases that come again, and what a plan reads again."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from hf_longctx.editing.difference import Ids
from hf_longctx.editing.echoes import echoes
from hf_longctx.editing.plan import again, compare, make_plan
from tests.tiny import text


def everywhere(ids: Ids, start: int = 0) -> Any:
    return np.arange(len(ids)) >= start


def test_phrases_that_come_again_are_found_rare_ones_first() -> None:
    common, rare = [5, 6], [40, 41, 42]
    ids = np.array([1, *common, 2, *common, 3, *common, 4, *rare, 7, *common, 8, 9])
    changed = [np.array([*rare, *common])]
    assert echoes(ids, changed, everywhere(ids, 4), 3).tolist() == [10, 11, 12]
    assert set(echoes(ids, changed, everywhere(ids, 4), 99).tolist()) == {4, 5, 7, 8, 10, 11, 12, 14, 15}
    assert echoes(ids, changed, everywhere(ids, 11), 3).tolist()[:2] == [11, 12], "what may not be chosen is not"


def test_nothing_comes_again() -> None:
    ids = np.array([3, 4, 5, 6])
    for changed, most in (([], 5), ([np.array([4])], 5), ([np.array([4, 3])], 5), ([ids], 0)):
        assert not len(echoes(ids, changed, everywhere(ids), most))
    assert not len(echoes(ids[:1], [ids], everywhere(ids[:1]), 5))


def test_half_are_the_next_ones_then_phrases_then_the_last_ones() -> None:
    base = list(range(100, 200))
    old = np.array([*base[:20], 7, 8, 9, *base[20:60], 7, 8, 9, *base[60:]])
    new = np.array([*base[:20], 7, 1, 9, *base[20:60], 7, 8, 9, *base[60:], 2])
    chosen = again(compare(old, new, len(old)), 16, True).nonzero()[0].tolist()
    assert chosen == [*range(22, 30), 63, 64, 65, *range(101, 106)]
    near = again(compare(old, new, len(old)), 16, False).nonzero()[0].tolist()
    assert near == [*range(22, 38)]


def test_as_many_as_were_asked_for_and_everything_if_there_are_fewer() -> None:
    for seed in range(30):
        old = text(1, 80, seed)[0].numpy()
        new = old.copy()
        for _ in range(1 + seed % 3):
            at = random.randrange(1, len(new))
            come = np.array(random.choices(range(3, 61), k=random.choice([0, 1, 9])), np.int64)
            new = np.concatenate([new[:at], come, new[at + random.choice([0, 1, 7]) :]])
        difference = compare(old, new, len(old))
        behind = sum(n for o, i, n in difference.found if (o, i) != (0, 0))
        places = sum((o, i) != (0, 0) for o, i, n in difference.found)
        for repair in (0, 1, 2, 7, 16, 1000):
            plan = make_plan(difference, repair)
            assert int(again(difference, repair, True).sum()) == min(repair * places, behind)
            kept, read = sum(n for _, _, n in plan.copies), sum(map(len, plan.read))
            assert kept + read == difference.n_new
            for o, i, n in plan.copies:
                assert np.array_equal(old[o : o + n], new[i : i + n])
