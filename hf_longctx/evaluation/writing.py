"""Scores of free writing of an asked length, without a judge: length, ending, repetition, copying, counted parts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .benchmarks.longwriter import length_score, n_words, words_score

ALWAYS = 1000  # words of the baseline that writes as long whatever is asked
QUANTILES = 1000  # at which the lengths of random stops are scored
NGRAM = 8  # words in a row: chance alone hardly ever writes so many twice
LOOPS = 0.3  # of a text's 8-grams: one that repeats more goes round in circles
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")
_PART = re.compile(r"\[(\d{1,6})/(\d{1,6})\]", re.ASCII)


@dataclass(frozen=True)
class WritingScore:
    """What `writing_score` says of a text.

    Args:
        words: Written words, as LongWriter counts them.
        ratio: Words over those asked for.
        length: S_l over 100, as published.
        ended_length: S_l over 100, and 0 for a text that did not end by itself.
        repeated: See `repeated_ngrams`.
        copied: See `copied_share`; 0 without a prompt.
        parts: See `counted_parts`; None if none were asked for.
    """

    words: int
    ratio: float
    length: float
    ended_length: float
    repeated: float
    copied: float
    parts: float | None


def writing_score(text: str, required: int, *, ended: bool, prompt: str = "", parts: int | None = None) -> WritingScore:
    """All scores of a text.

    Args:
        text: What was written.
        required: Words asked for.
        ended: Whether the text ended by itself, with the end token.
        prompt: What was asked, in which copied words are looked for.
        parts: Counted parts ("[3/8] ...") asked for.

    Raises:
        ValueError: `required` or `parts` is below 1.
    """
    words = n_words(text)
    return WritingScore(
        words=words,
        length=length_score(text, required),
        ratio=words / required,
        ended_length=ended_length_score(text, required, ended),
        repeated=repeated_ngrams(text),
        copied=copied_share(text, prompt),
        parts=None if parts is None else counted_parts(text, parts),
    )


def ended_length_score(text: str, required: int, ended: bool) -> float:
    """S_l over 100, and 0 for a text that did not end by itself.

    S_l alone pays for a text that was cut: noise that never ends, cut at twice the asked length, has 0.67. Give room
    for at least three times the asked words.
    """
    return length_score(text, required) if ended else 0.0


def length_baselines(asked: Sequence[int]) -> dict[str, float]:
    """The mean S_l over 100 of two writers that read no length, to be shown beside every score.

    One always writes 1,000 words. The other stops after each word with the same chance, and writes the asked number of
    words in the mean.

    Args:
        asked: Words asked for, of each answer.

    Raises:
        ValueError: There is none, or one is below 1.
    """
    if not asked:
        raise ValueError("asked is empty: expected the words asked for, of at least one answer.")
    shares = [-math.log(1 - (i + 0.5) / QUANTILES) for i in range(QUANTILES)]  # of an exponential of mean 1
    at_random = {n: sum(words_score(round(share * n), n) for share in shares) / QUANTILES for n in set(asked)}
    return {
        f"always {ALWAYS:,} words": sum(words_score(ALWAYS, n) for n in asked) / len(asked),
        "stops at random": sum(at_random[n] for n in asked) / len(asked),
    }


def repeated_ngrams(text: str, n: int = NGRAM) -> float:
    """The share of the text's runs of `n` words that stand in it before; capitals do not count. 0 below `n` + 1 words.

    It grows with the length of a text: compare at equal lengths.
    """
    runs = _runs(_words(text), n)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def has_loops(text: str) -> bool:
    """Whether a text goes round in circles: more than `LOOPS` of its runs of words stand in it before."""
    return repeated_ngrams(text) > LOOPS


def copied_share(text: str, prompt: str, n: int = NGRAM) -> float:
    """The share of the text's words that lie in a run of `n` words which the prompt has, too."""
    words, known = _words(text), set(_runs(_words(prompt), n))
    covered, end = 0, 0  # words before `end` are counted
    for at, run in enumerate(_runs(words, n)):
        if run in known:
            covered += at + n - max(at, end)
            end = at + n
    return covered / len(words) if words else 0.0


def counted_parts(text: str, parts: int) -> float:
    """Completion: the share of the marks "[1/8]", "[2/8]", ... that come in order, up to the first that does not.

    Marks too many count against a text: the share is over those asked for, or over those written if these are more.

    Raises:
        ValueError: `parts` is below 1.
    """
    if parts < 1:
        raise ValueError(f"parts={parts}: expected at least one part.")
    found = [(int(i), int(of)) for i, of in _PART.findall(text)]
    right = 0
    for mark in found:
        if mark != (right + 1, parts):
            break
        right += 1
    return right / max(parts, len(found))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))
