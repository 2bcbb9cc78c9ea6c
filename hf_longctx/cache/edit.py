"""PIE: a text was read and then edited; its cache follows without being read anew (He et al. 2024).

https://arxiv.org/abs/2407.03157, "Let the Code LLM Edit Itself When You Edit the Code". Keys behind an edit are moved
to where their tokens now stand, values are left alone, and only what is new is read.
"""

# G key/value heads, S cached keys, D head dim; the batch is always 1
from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicSlidingWindowLayer

from ..anatomy import attention_layers, find_tower
from ..patch import unwrap
from .difference import Match, matches
from .editable import check_cache, check_model, check_tokens, ids_of
from .rotate import Mover
from .workspace import Span, Work, first_kept, in_window, work_on

REPAIR = 16  # re-reading more than this behind an edit hardly comes closer to reading everything anew
CHUNK = 2048  # tokens of one forward: bounds the memory of masks and activations


@dataclass(frozen=True)
class EditReport:
    """What an edit did with the tokens of the new text: kept + moved + forwarded + repaired is what the cache covers.

    Attributes:
        edits: places at which something changed.
        kept: tokens whose keys and values are what and where they were.
        moved: tokens behind an edit that changed the length: keys moved, values left alone.
        forwarded: tokens that the cache did not have.
        repaired: old tokens behind an edit that were read again.
        reread: tokens read again for sliding-window layers alone, which had evicted them.
        deleted: tokens of the old text that are in the new one no more.
        seconds: the whole edit; `seconds_diff` of them to find the differences, `seconds_move` to move keys and
            `seconds_forward` for the model. On a GPU they are the host's.
    """

    edits: int
    kept: int
    moved: int
    forwarded: int
    repaired: int
    reread: int
    deleted: int
    seconds: float
    seconds_diff: float
    seconds_move: float
    seconds_forward: float


@torch.no_grad()
def edit(model: Any, cache: Cache, old_ids: Any, new_ids: Any, repair: int | None = None) -> tuple[Cache, EditReport]:
    """Make a cache that holds `old_ids` hold `new_ids`, by reading little more than what is new.

    The cache is changed in place, all of it or (after an error) nothing, and then covers `new_ids[:-1]`: `generate`
    wants a last token to read, so `model.generate(new_ids, past_key_values=cache)` goes on. This is approximate: what
    is behind an edit keeps the values that were computed before it. With `repair` as long as the text it is exact.

    Sliding-window layers that have evicted keys cannot be edited in the middle as they are: before each edit their
    window is read again, (sliding layers) x (window - 1) tokens, which makes it exact and costs as much.

    Args:
        model: the causal language model that has filled the cache; stock, or with the method it had then.
        cache: a `DynamicCache` of one text (batch 1, no padding). It holds `old_ids`, or all of them but the last, as
            `generate` leaves it. Static, quantised and offloaded caches are refused, as are bounded ones
            (`LMInfinite`, `StreamingLLM`) that have evicted tokens: what is gone cannot be read by what is new.
        old_ids: the token ids that were read: a list, a 1-D tensor, or one row.
        new_ids: the token ids of the text after any number of edits.
        repair: old tokens behind each edit that are read again. None: 16, where most of what can be had is had; 0:
            none, as in the paper.
    """
    begun = time.perf_counter()
    base: Any = unwrap(model)
    tower: Any = find_tower(base)
    if repair is None:
        repair = REPAIR
    if isinstance(repair, bool) or not isinstance(repair, int) or repair < 0:
        raise ValueError(f"repair={repair!r}: expected a number of tokens, 0 or more, or None for {REPAIR}.")
    check_model(tower)
    old, new = ids_of(old_ids, "old_ids", tower), ids_of(new_ids, "new_ids", tower)
    modules: list[Any] = list(attention_layers(tower))
    n_cached = check_cache(tower, modules, cache, len(old))
    check_tokens(tower, modules, cache, old[:n_cached])
    texts = matches(old, new)
    gaps = pairwise([Match(0, 0, 0), *texts, Match(len(old), len(new), 0)])
    edits = sum((a.old + a.length, a.new + a.length) != b[:2] for a, b in gaps)
    deleted = len(old) - sum(n for _, _, n in texts)
    # from here on, what the cache has and what it is to have
    old, new = old[:n_cached], new[:-1]
    fitting = (Match(o, i, min(n, len(old) - o, len(new) - i)) for o, i, n in texts)
    found = [match for match in fitting if match.length > 0]
    seconds_diff = time.perf_counter() - begun
    plan = _plan(found, len(new), repair, [layer for layer in cache.layers if _sliding(layer)])
    works: list[Work] = []
    if found != [Match(0, 0, len(old))] or len(old) != len(new):
        mover = Mover(tower)
        for module in modules:
            layer = cache.layers[int(module.layer_idx)]
            works.append(work_on(layer, plan.copies, len(new), partial(mover.move, module)))
    seconds_move = time.perf_counter() - begun - seconds_diff
    # offloaded weights are nowhere; keys are where they were computed
    device = tower.device if tower.device.type != "meta" else cache.layers[0].keys.device
    for run in plan.runs:
        _forward(tower, works, new, run, plan.fresh, device)
    for module, work in zip(modules, works, strict=False):  # no works, if there is nothing to do
        work.commit(cache.layers[int(module.layer_idx)])
    seconds = time.perf_counter() - begun
    report = EditReport(
        edits=edits,
        kept=sum(n for o, i, n in plan.copies if o == i),
        moved=sum(n for o, i, n in plan.copies if o != i),
        forwarded=len(new) - sum(n for _, _, n in found),
        repaired=sum(n for _, _, n in found) - sum(n for _, _, n in plan.copies),
        reread=sum(map(len, plan.runs)) - sum(map(len, plan.fresh)),
        deleted=deleted,
        seconds=seconds,
        seconds_diff=seconds_diff,
        seconds_move=seconds_move,
        seconds_forward=seconds - seconds_diff - seconds_move,
    )
    return cache, report


@dataclass(frozen=True)
class _Plan:
    """What stays (perhaps elsewhere), what is read, and in which runs: those may begin earlier, for windows' sake."""

    copies: list[Match]
    fresh: list[Span]
    runs: list[Span]


def _plan(found: Sequence[Match], n_new: int, repair: int, sliding: Sequence[Any]) -> _Plan:
    copies = []
    for old, new, n in found:
        again = 0 if old == new == 0 else min(repair, n)
        if n > again:
            copies.append(Match(old + again, new + again, n - again))
    fresh, end = [], 0
    for _, new, n in (*copies, Match(0, n_new, 0)):
        if new > end:
            fresh.append(Span(end, new))
        end = new + n
    runs = _with_windows(fresh, copies, n_new, sliding) if any(first_kept(layer) > 0 for layer in sliding) else fresh
    return _Plan(copies, fresh, runs)


def _with_windows(fresh: Sequence[Span], copies: Sequence[Match], n_new: int, sliding: Sequence[Any]) -> list[Span]:
    """Runs that begin so much earlier that sliding-window layers, which have evicted keys, read the right ones.

    The first sliding layer's keys depend on their own tokens, the second one's on a window of those, and so on: so many
    windows before a token, all that it reads is right, whatever the run found at its own beginning.
    """
    layer = max(sliding, key=lambda layer: layer.sliding_window)
    reach = layer.sliding_window - 1
    warm_up = reach * len(sliding)
    have = [Span(new, new + n) for _, new, n in in_window(layer, copies) if n]
    runs: list[Span] = []
    # an empty run at the end stands for the window that the next token will read
    for span in (*fresh, Span(n_new, n_new)):
        missing = _first_gap([*have, *runs], Span(max(span.start - reach, 0), span.start))
        start = span.start if missing is None else max(min(missing, span.start) - warm_up, 0)
        end = span.end if len(span) or missing is None else _last_gap([*have, *runs], Span(missing, span.end))
        while runs and start <= runs[-1].end and start < end:
            start, end = min(start, runs[-1].start), max(end, runs.pop().end)
        if start < end:
            runs.append(Span(start, end))
    return runs


def _first_gap(have: Sequence[Span], need: Span) -> int | None:
    """The first position of `need` that none of `have` has."""
    at = need.start
    for span in sorted(have, key=lambda span: span.start):
        if span.start <= at:
            at = max(at, span.end)
    return at if at < need.end else None


def _last_gap(have: Sequence[Span], need: Span) -> int:
    """The end of the last gap in `need`."""
    at = need.end
    for span in sorted(have, key=lambda span: -span.end):
        if span.end >= at:
            at = min(at, span.start)
    return max(at, need.start)


def _forward(
    tower: Any, works: Sequence[Work], ids: Tensor, run: Span, fresh: Iterable[Span], device: torch.device
) -> None:
    """Read a run of tokens into the layers in the making."""
    for start in range(run.start, run.end, CHUNK):
        chunk = Span(start, min(start + CHUNK, run.end))
        kept = [part for span in fresh if len(part := span.cut(chunk))]
        for work in works:
            work.begin(chunk, kept)
        tower(
            input_ids=ids[None, chunk.start : chunk.end].to(device),
            position_ids=torch.arange(chunk.start, chunk.end, device=device)[None],
            past_key_values=Cache(layers=list(works)),
            use_cache=True,
        )
        if not all(work.written for work in works):
            raise ValueError(
                f"{type(tower).__name__}: it caches nothing in this state (gradient checkpointing in training mode?). "
                f"Call model.eval() first."
            )


def _sliding(layer: Any) -> bool:
    return isinstance(layer, DynamicSlidingWindowLayer)
