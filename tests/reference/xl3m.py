"""XL3M, literally: one segment at a time, every logit, lists instead of batches. Wang et al. 2024, section 3.

H head, S_i segment, q question, C key context.
"""

from __future__ import annotations

import math
from statistics import median_low
from typing import Any

import torch


def segments(text: list[int], size: int, overlap: int) -> list[tuple[int, int]]:
    """[start, stop) of each; the last one ends with the text."""
    if len(text) <= size:
        return [(0, len(text))]
    starts = list(range(0, len(text) - size + 1, size - overlap))
    if starts[-1] + size < len(text):
        starts.append(len(text) - size)
    return [(start, start + size) for start in starts]


@torch.no_grad()
def statistics(model: Any, H: list[int], S: list[int], q: list[int]) -> tuple[list[float], float]:
    """-log p(q_j | H, S, q_<j) for j > 1, and the entropy of p(. | H, S, q)."""
    ids = [*H, *S, *q]
    log_p = model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    first = len(H) + len(S)
    nll = [-float(log_p[first + j - 1, q[j]]) for j in range(1, len(q))]
    entropy = -sum(math.exp(x) * x for x in log_p[-1].tolist() if x > -math.inf)
    return nll, entropy


def scores(model: Any, H: list[int], text: list[int], q: list[int], size: int, overlap: int) -> dict[str, list[float]]:
    """The three scores of every segment."""
    found = [statistics(model, H, text[a:b], q) for a, b in segments(text, size, overlap)]
    usual = [median_low([nll[j] for nll, _ in found]) for j in range(len(q) - 1)]
    return {
        "gain": [sum(max(0.0, u - x) for u, x in zip(usual, nll, strict=True)) / len(nll) for nll, _ in found],
        "question_nll": [sum(nll) / len(nll) for nll, _ in found],
        "entropy": [entropy for _, entropy in found],
    }


def kept(
    score: list[float], places: list[tuple[int, int]], keep: float, room: int, higher_is_better: bool
) -> list[int]:
    """Numbers of the segments in the key context, in the order of the text."""
    badness = [-x if higher_is_better else x for x in score]
    best, middle = min(badness), median_low(badness)
    limit = best + (1 - keep) * (middle - best)
    chosen: list[int] = []
    for i in sorted(range(len(badness)), key=lambda i: (badness[i], i)):
        tokens = {t for j in [*chosen, i] for t in range(*places[j])}
        if chosen and (badness[i] > limit or len(tokens) > room):
            break
        chosen.append(i)
    return sorted(chosen)


def key_context(text: list[int], places: list[tuple[int, int]], chosen: list[int]) -> list[int]:
    """Each token of the chosen segments once, in order."""
    tokens = sorted({t for i in chosen for t in range(*places[i])})
    return [text[t] for t in tokens]
