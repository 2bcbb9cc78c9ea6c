"""How much of held-back text was trained on: documents that are in both, and runs of 13 tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .repeats import same_text

RUN = 13  # tokens that two texts hardly share by chance (GPT-3's measure of contamination)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def refuse_shared(held_back: Mapping[str, str], training: Mapping[str, str]) -> None:
    """ValueError that names every document which is both held back and trained on, under whatever name.

    Documents are compared by a hash of their text, without regard to white space and capitals.
    """
    by_hash = {same_text(text): name for name, text in training.items()}
    both = [(name, by_hash[mark]) for name, text in held_back.items() if (mark := same_text(text)) in by_hash]
    if both:
        shown = ", ".join(one if one == other else f"{one} (trained on as {other})" for one, other in both)
        raise ValueError(
            f"documents that are both held back and trained on: {shown}. Take them out of the training set, or hold "
            f"back others: a score on them says nothing."
        )


def overlap(held_back: Iterable[Sequence[int]], training: Iterable[Sequence[int]], run: int = RUN) -> list[float]:
    """Of each held-back document, the share of its tokens that lie in a run of `run` tokens of the training set.

    Args:
        held_back: Token ids of each document. One that is shorter than a run has the share 0.
        training: Token ids of each document; runs do not go from one to the next.
        run: Tokens of a run.
    """
    if run < 1:
        raise ValueError(f"run={run}: expected at least one token.")
    trained = [_runs(ids, run) for ids in training]
    known = np.sort(np.concatenate(trained)) if trained else np.zeros(0, np.uint64)
    return [_covered(_among(_runs(ids, run), known), len(ids), run) for ids in held_back]


def _runs(ids: Sequence[int], run: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit hash of every run of tokens: 10 million of them share one by chance with a probability of 3e-6."""
    tokens = np.asarray(ids, dtype=np.uint64)
    count = max(len(tokens) - run + 1, 0)
    marks = np.zeros(count, np.uint64)
    for at in range(run):
        # wraps around
        marks = (marks ^ (tokens[at : at + count] + np.uint64(at + 1))) * _MIX
        marks ^= marks >> np.uint64(29)
    return marks


def _among(marks: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which marks are among sorted ones. np.isin takes a hundred times as long for 10 million."""
    if not len(known):
        return np.zeros(len(marks), bool)
    at = np.searchsorted(known, marks).clip(max=len(known) - 1)
    return np.asarray(known[at] == marks)


def _covered(found: np.ndarray[Any, np.dtype[np.bool_]], tokens: int, run: int) -> float:
    """Of the tokens, the share in at least one run that was found."""
    if not tokens:
        return 0.0
    edges = np.zeros(tokens + 1, np.int64)
    starts = found.nonzero()[0]
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + run, -1)
    return float((edges[:-1].cumsum() > 0).mean())
