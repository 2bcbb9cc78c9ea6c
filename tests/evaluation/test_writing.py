"""Length, ending, repetition, copying and counted parts of free writing."""

from __future__ import annotations

import math
import random

import pytest

from hf_longctx.evaluation.benchmarks.longwriter import length_score, n_words
from hf_longctx.evaluation.writing import (
    copied_share,
    counted_parts,
    ended_length_score,
    has_loops,
    repeated_ngrams,
    writing_score,
)

ASKED = (500, 1000, 2000, 4000)


def words(n: int) -> str:
    return "word " * n


def published(found: int, asked: int) -> float:
    """S_l (LongWriter, section 3.2), literally."""
    if found > asked:
        return 100 * max(0, 1 - (found / asked - 1) / 3)
    return 100 * max(0, 1 - (asked / found - 1) / 2)


@pytest.mark.parametrize("asked", ASKED)
def test_length_scores_are_as_published_and_0_for_nothing(asked: int) -> None:
    for found in (1, asked // 4, asked // 3, asked // 2, asked - 1, asked, asked + 1, 2 * asked, 4 * asked, 5 * asked):
        text = words(found)
        assert 100 * length_score(text, asked) == pytest.approx(published(found, asked))
        assert ended_length_score(text, asked, True) == length_score(text, asked)
        assert ended_length_score(text, asked, False) == 0
    assert length_score("", asked) == length_score("12 34 !?", asked) == 0


def test_what_the_published_score_pays_for() -> None:
    """Lines beside every table: always 1,000 words, a constant chance to stop, noise cut at twice the length."""
    always = sum(length_score(words(1000), asked) for asked in ASKED) / len(ASKED)
    assert always == pytest.approx(0.54, abs=0.005)
    rng = random.Random(0)
    draws = [length_score(words(max(1, round(rng.expovariate(1) * 200))), 200) for _ in range(2000)]
    assert sum(draws) / len(draws) == pytest.approx(0.47, abs=0.03)  # 2,000 draws of deviation 0.37: 3 x 0.008
    assert length_score(words(1000), 500) == pytest.approx(2 / 3)
    assert ended_length_score(words(1000), 500, False) == 0


def test_words_are_counted_as_longwriter_does() -> None:
    assert n_words("It's 3 words, or 长文?") == 6  # "It", "s", "words", "or", and two characters
    assert n_words("naïve") == 0  # its rule knows ASCII letters only


def test_repeated_runs_of_words() -> None:
    rng = random.Random(1)
    fresh = [f"w{rng.randrange(10**6)}" for _ in range(400)]
    assert repeated_ngrams(" ".join(fresh)) == 0
    assert repeated_ngrams("") == repeated_ngrams("one two three") == 0
    twice = " ".join(fresh + fresh)
    # 793 runs, of which 393 stand there before
    assert repeated_ngrams(twice) == pytest.approx(393 / 793)
    assert repeated_ngrams(twice.upper()) == repeated_ngrams(twice)
    assert repeated_ngrams("again " * 1000) == pytest.approx(1 - 1 / 993)
    text = [fresh[rng.randrange(3)] for _ in range(300)]
    runs = [tuple(text[i : i + 8]) for i in range(293)]
    slow = sum(run in runs[:i] for i, run in enumerate(runs)) / len(runs)
    assert repeated_ngrams(" ".join(text)) == pytest.approx(slow)
    assert repeated_ngrams("长文本的模型写作很好" * 2) == pytest.approx(3 / 13)
    # of 99 runs 29 stand there before, and of 101 runs 31
    assert not has_loops(" ".join(fresh[:70] + fresh[:36]))
    assert has_loops(" ".join(fresh[:70] + fresh[:38]))


def test_words_copied_from_the_prompt() -> None:
    rng = random.Random(2)
    prompt = [f"p{i}" for i in range(50)]
    own = [f"o{i}" for i in range(50)]
    assert copied_share(" ".join(own), " ".join(prompt)) == copied_share("", " ".join(prompt)) == 0
    assert copied_share(" ".join(prompt), " ".join(prompt)) == 1
    assert copied_share(" ".join(own), "") == 0
    assert copied_share(" ".join([*own, *prompt[3:13], *own]), " ".join(prompt)) == pytest.approx(10 / 110)
    assert copied_share(" ".join([*own, *prompt[3:10]]), " ".join(prompt)) == 0  # seven words
    for _ in range(20):
        text = [*own]
        for _ in range(4):
            at, start = rng.randrange(len(text)), rng.randrange(50)
            text[at:at] = prompt[start : start + rng.randrange(1, 20)]
        known = {tuple(prompt[k : k + 8]) for k in range(43)}
        hits = [j for j in range(len(text) - 7) if tuple(text[j : j + 8]) in known]
        inside = [any(j <= i < j + 8 for j in hits) for i in range(len(text))]
        assert copied_share(" ".join(text), " ".join(prompt)) == pytest.approx(sum(inside) / len(text))


@pytest.mark.parametrize(
    ("marks", "share"),
    [
        ("[1/4] a [2/4] b [3/4] c [4/4] d", 1),
        ("[1/4] a [2/4] b", 0.5),
        ("[1/4] a [3/4] b [4/4]", 0.25),
        ("[1/4] a [2/5] b", 0.25),
        ("[1/4] [2/4] [3/4] [4/4] [4/4] [4/4] [4/4] [4/4]", 0.5),
        ("[2/4] b", 0),
        ("no marks", 0),
        ("[" * 10_000 + "1" * 10_000 + "/4]", 0),
    ],
)
def test_counted_parts_come_in_order(marks: str, share: float) -> None:
    assert counted_parts(marks, 4) == share


def test_all_scores_together() -> None:
    found = writing_score("[1/2] one two [2/2] three", 3, ended=False, prompt="Write.", parts=2)
    assert (found.words, found.ratio, found.length, found.ended_length) == (3, 1, 1, 0)
    assert (found.repeated, found.copied, found.parts) == (0, 0, 1)
    assert writing_score("a b", 4, ended=True).ended_length == 0.5
    assert writing_score("a b", 4, ended=True).parts is None
    assert math.isfinite(writing_score("", 4, ended=True).ratio)
    with pytest.raises(ValueError, match="required=0"):
        writing_score("a", 0, ended=True)
    with pytest.raises(ValueError, match="parts=0"):
        writing_score("a", 1, ended=True, parts=0)
