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
from typing import Any

import torch
from transformers import Cache

from ..attention.rerotate import Mover
from ..patch import unwrap
from ..upstream.caches import given_cache
from . import graph as edit_graph
from .difference import Ids
from .editable import caches_nothing, check_cache, check_model, check_tokens, ids_of
from .parts import Parts, parts_of
from .placed import PlacedWork, Row, read_placed, why_not
from .plan import REPAIR, Difference, Plan, compare, make_plan, repair_of
from .workspace import Span, Work, work_on

__all__ = ["CHUNK", "REPAIR", "EditReport", "edit"]
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
def edit(
    model: Any,
    cache: Cache,
    old_ids: Any,
    new_ids: Any,
    repair: int | None = None,
    *,
    compiled: bool | None = None,
) -> tuple[Cache, EditReport]:
    """Make a cache that holds `old_ids` hold `new_ids`, by reading little more than what is new.

    The cache is changed in place, all of it or (after an error) nothing, and then covers `new_ids[:-1]`: `generate`
    wants a last token to read, so `model.generate(new_ids, cache=cache)` goes on (`past_key_values=cache` before
    transformers 5.24). This is approximate: what is behind an edit keeps the values that were computed before it. With
    `repair` as long as the text it is exact.

    Sliding-window layers that have evicted keys cannot be edited in the middle as they are: before each edit their
    window is read again, (sliding layers) x (window - 1) tokens, which makes it exact and costs as much.

    Args:
        model: the causal language model that has filled the cache; stock, or with the method it had then.
        cache: a `DynamicCache` of one text (batch 1, no padding). It holds `old_ids`, or all of them but the last, as
            `generate` leaves it. Static, quantised and offloaded caches are refused, as are bounded ones
            (`LMInfinite`, `StreamingLLM`) that have evicted tokens: what is gone cannot be read by what is new.
        old_ids: the token ids that were read: a list, a 1-D tensor, or one row.
        new_ids: the token ids of the text after any number of edits.
        repair: old tokens that are read again for each place that changed. Half are the next ones behind it, a quarter
            repeat phrases of what was changed, the rest are the last ones of the text; with windows, un-rotated keys or
            kernels that take no mask, all are the next ones. None: 256; 0: none, as in the paper.
        compiled: whether moving keys and reading tokens comes from a CUDA graph. None: from a model's second edit on,
            if it can (half precision on one GPU, stock attention without windows, at most 1,024 tokens to read).
            The graph keeps buffers as large as the longest cache; `edit_graph.forget(decoder)` frees them.
            True: now, and ValueError if it cannot; False: never.
    """
    begun = time.perf_counter()
    base: Any = unwrap(model)
    parts = parts_of(base)
    decoder, modules, _ = parts
    repair = repair_of(repair)
    check_model(decoder)
    old, new = ids_of(old_ids, "old_ids", decoder), ids_of(new_ids, "new_ids", decoder)
    n_cached = check_cache(decoder, modules, cache, len(old))
    difference = compare(old, new, n_cached)
    placed = why_not(decoder, modules, cache) is None
    plan = make_plan(difference, repair, cache.layers, anywhere=placed)
    row = Row(plan.copies, plan.fresh, new[:-1])
    recorded = compiled is not False and not difference.nothing and _recorded(parts, cache, row, compiled)
    if not recorded:
        check_tokens(decoder, modules, cache, [old[:n_cached]])
    seconds_diff = time.perf_counter() - begun
    seconds_move = 0.0
    works: list[Any] | None = edit_graph.edit_from_graph(parts, cache, row) if recorded else None
    if works is None or not edit_graph.is_checked(decoder):
        made, works = works, []
        if recorded:  # for the first time, or in vain
            check_tokens(decoder, modules, cache, [old[:n_cached]])
        if not difference.nothing:
            works, seconds_move = _read(decoder, modules, cache, row, plan)
        if made is not None:
            edit_graph.check(decoder, made, works, row)
    for module, work in zip(modules, works, strict=False):  # no works, if there is nothing to do
        work.commit(cache.layers[int(module.layer_idx)])
    seconds = time.perf_counter() - begun
    return cache, report(difference, plan, (seconds, seconds_diff, seconds_move))


def _recorded(parts: Parts, cache: Cache, row: Row, wanted: bool | None) -> bool:
    """Is this edit to come from a CUDA graph?"""
    reason = edit_graph.refuses(parts, cache, row)
    if reason is not None and wanted:
        raise ValueError(f"compiled=True: this edit cannot come from a CUDA graph, as {reason}. Leave it out.")
    return reason is None and (edit_graph.pays(parts.decoder) or bool(wanted))


def _read(decoder: Any, modules: Sequence[Any], cache: Cache, row: Row, plan: Plan) -> tuple[list[Any], float]:
    """Layers in the making with everything moved and read, and the seconds that moving took."""
    begun = time.perf_counter()
    mover, works = Mover(decoder), []
    placed = sum(map(len, plan.fresh)) <= CHUNK and why_not(decoder, modules, cache) is None
    for module in modules:
        layer: Any = cache.layers[int(module.layer_idx)]
        move, length = partial(mover.move, module), len(row.ids)
        works.append(PlacedWork(layer, [row], length, move) if placed else work_on(layer, plan.copies, length, move))
    seconds = time.perf_counter() - begun
    device = device_of(decoder, cache)
    if placed:
        read_placed(decoder, works, [row], device, CHUNK)
    else:
        for run in plan.runs:
            _forward(decoder, works, row.ids, run, plan.fresh, device)
    return works, seconds


def report(difference: Difference, plan: Plan, seconds: tuple[float, float, float]) -> EditReport:
    """What was done; seconds of everything, of finding differences and of moving keys."""
    found = sum(n for _, _, n in difference.found)
    return EditReport(
        edits=difference.edits,
        kept=sum(n for o, i, n in plan.copies if o == i),
        moved=sum(n for o, i, n in plan.copies if o != i),
        forwarded=difference.n_new - found,
        repaired=found - sum(n for _, _, n in plan.copies),
        reread=sum(map(len, plan.runs)) - sum(map(len, plan.fresh)),
        deleted=difference.deleted,
        seconds=seconds[0],
        seconds_diff=seconds[1],
        seconds_move=seconds[2],
        seconds_forward=seconds[0] - seconds[1] - seconds[2],
    )


def device_of(decoder: Any, cache: Cache) -> torch.device:
    """Where a forward's inputs go: offloaded weights are nowhere, and keys are where they were computed."""
    layers: Any = cache.layers
    where: torch.device = decoder.device if decoder.device.type != "meta" else layers[0].keys.device
    return where


def _forward(
    decoder: Any, works: Sequence[Work], ids: Ids, run: Span, fresh: Iterable[Span], device: torch.device
) -> None:
    """Read a run of tokens into the layers in the making."""
    for start in range(run.start, run.end, CHUNK):
        chunk = Span(start, min(start + CHUNK, run.end))
        kept = [part for span in fresh if len(part := span.cut(chunk))]
        for work in works:
            work.begin(chunk, kept)
        decoder(
            input_ids=torch.from_numpy(ids[None, chunk.start : chunk.end]).to(device),
            position_ids=torch.arange(chunk.start, chunk.end, device=device)[None],
            **given_cache(decoder, Cache(layers=list(works))),
            use_cache=True,
        )
        if not all(work.written for work in works):
            raise caches_nothing(decoder)
