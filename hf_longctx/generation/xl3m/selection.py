"""Which segments of a text are read again: the best of them, above a margin, in the order of the text."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """One segment that is in the key context, with its three scores.

    `gain` and `question_nll` are in nats per token of the question; `entropy`, that of the next token, is in nats.
    """

    number: int
    start: int
    stop: int
    gain: float
    question_nll: float
    entropy: float


@dataclass(frozen=True, eq=False)
class Selection:
    """What was kept of a text, and why. Places are tokens of the text, from its first on.

    Args:
        kept: The segments in the order of the text; empty where the whole text was read (`whole`).
        spans: The places of `kept` with overlaps merged, [start, stop): what the model read.
        tokens: Tokens of the text.
        threshold: The score that a segment needed to be kept, however much room there was: a gain of at least this, or
            an NLL or entropy of at most this.
        scores: For every segment, in the order of the text, (segments,) fp32 on the CPU: "gain", "question_nll" and
            "entropy".
        whole: The prompt fitted the window, so nothing was left out and nothing scored. A prompt that is all question
            has no tokens of text.
    """

    kept: tuple[Kept, ...]
    spans: tuple[tuple[int, int], ...]
    tokens: int
    threshold: float
    scores: dict[str, Tensor] = field(repr=False)
    whole: bool = False

    def __str__(self) -> str:
        if self.whole:
            return f"all {self.tokens:,} tokens fit the window" if self.tokens else "the prompt fits the window"
        spans = ", ".join(f"{start:,}-{stop:,}" for start, stop in self.spans)
        return f"{len(self.kept)} of {len(self.scores['entropy']):,} segments ({self.tokens:,} tokens): {spans}"


def all_of(tokens: int) -> Selection:
    """The selection of a text of `tokens` that is read as it is."""
    return Selection((), ((0, tokens),) if tokens else (), tokens, float("nan"), {}, whole=True)


@dataclass(frozen=True, order=True)
class Candidate:
    """A segment that may be kept, with its ids. A lower score is better."""

    score: float
    number: int  # of two with the same score the earlier one comes first
    start: int = field(compare=False)
    ids: tuple[int, ...] = field(compare=False)


class Best:
    """The `most` best candidates of a text that passes by; only their ids are held."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.found: list[Candidate] = []  # best first

    def add(self, score_N: Tensor, first: int, starts: Sequence[int], ids_NS: Tensor) -> None:
        """Take in a batch of segments and their scores."""
        values, order = score_N.topk(min(self._most, len(score_N)), largest=False)
        worst = self.found[-1].score if len(self.found) == self._most else float("inf")
        better = [i for value, i in zip(values.tolist(), order.tolist(), strict=True) if value <= worst]
        rows = ids_NS[torch.tensor(better, dtype=torch.long, device=ids_NS.device)].tolist()
        new = (
            Candidate(float(score_N[i]), first + i, starts[i], tuple(row)) for i, row in zip(better, rows, strict=True)
        )
        self.found = heapq.nsmallest(self._most, [*self.found, *new])


def threshold(score_N: Tensor, keep: float) -> float:
    """The score that lies the share `keep` of the way from the median segment to the best.

    It depends on how the best stands out, not on how many segments there are or on the unit of the score.
    """
    best, median = float(score_N.min()), float(score_N.median())
    return best + (1 - keep) * (median - best)


def choose(candidates: Sequence[Candidate], limit: float, room: int) -> list[Candidate]:
    """From the best on, as long as scores are at most `limit` and the text they cover is at most `room` tokens.

    The best one is always kept. The result is in the order of the text.
    """
    chosen: list[Candidate] = []
    for candidate in candidates:
        grown = sorted([*chosen, candidate], key=lambda c: c.start)
        covered = sum(stop - start for start, stop in spans(grown))
        if chosen and (candidate.score > limit or covered > room):
            break
        chosen = grown
    return chosen


def spans(chosen: Sequence[Candidate]) -> list[tuple[int, int]]:
    """The places of segments in the order of the text, overlapping and touching ones merged."""
    merged: list[tuple[int, int]] = []
    for candidate in chosen:
        start, stop = candidate.start, candidate.start + len(candidate.ids)
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def splice(chosen: Sequence[Candidate]) -> list[int]:
    """The ids of segments in the order of the text, each token once."""
    ids: list[int] = []
    reached = 0
    for candidate in chosen:
        new = max(0, min(len(candidate.ids), reached - candidate.start))
        ids += candidate.ids[new:]
        reached = max(reached, candidate.start + len(candidate.ids))
    return ids
