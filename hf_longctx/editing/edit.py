"""PIE: a text was read and then edited; its cache follows without a full re-read (He et al. 2024).

https://arxiv.org/abs/2407.03157, "Let the Code LLM Edit Itself When You Edit the Code". Keys after an edit are
re-rotated to the new positions of their tokens, values stay as they are, and only new tokens are read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import Cache

from ..attention.rerotate import Mover
from ..patch import unwrap
from ..upstream.caches import given_cache
from . import graph
from .editable import caches_nothing, check_cache, check_model, check_tokens, ids_of
from .parts import parts_of
from .placed import RowEdit, placed_works, read_placed, why_not_placed
from .plan import Difference, EditPlan, compare, make_plan, repair_of
from .workspace import Span, work_on

CHUNK = 2048  # tokens of one forward: bounds the memory of masks and activations


@dataclass(frozen=True)
class EditReport:
    """What an edit did with the tokens of the new text: kept + moved + forwarded + repaired is what the cache covers.

    Attributes:
        edits: Places at which something changed.
        kept: Tokens whose keys, values and positions are unchanged.
        moved: Tokens after an edit that changed the length: keys re-rotated, values unchanged.
        forwarded: Tokens that the cache did not have.
        repaired: Old tokens after an edit that were read again.
        reread: Tokens read again for sliding-window layers alone, which had evicted them.
        deleted: Tokens of the old text that are not in the new one.
        seconds: The whole edit, on a GPU those of the host.
        seconds_diff: Of these, to find the differences.
        seconds_move: To move keys.
        seconds_forward: For the model.
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
    model: Any, cache: Cache, old_ids: Any, new_ids: Any, repair: int | None = None, *, compiled: bool | None = None
) -> tuple[Cache, EditReport]:
    """Make a cache that holds `old_ids` hold `new_ids`, by reading few tokens besides the new ones.

    The cache is changed in place, completely or (after an error) not at all, and then covers `new_ids[:-1]`: `generate`
    needs a last token to read, so `model.generate(new_ids, cache=cache)` continues (`past_key_values=cache` before
    transformers 5.24). This is approximate: tokens after an edit keep the values that were computed before it. With
    `repair` as long as the text it is exact.

    Sliding-window layers that have evicted keys cannot be edited in the middle as they are: before each edit their
    window is read again, (sliding layers) x (window - 1) tokens, which makes it exact and costs as much.

    Args:
        model: The causal language model that has filled the cache; stock, or with the method it had then.
        cache: A `DynamicCache` of one text (batch 1, no padding). It holds `old_ids`, or all of them but the last, as
            `generate` leaves it. Static, quantised and offloaded caches are refused, as are bounded ones
            (`LMInfinite`, `StreamingLLM`) that have evicted tokens: new tokens cannot attend to evicted keys.
        old_ids: The token ids that were read: a list, a 1-D tensor, or one row.
        new_ids: The token ids of the text after any number of edits.
        repair: Old tokens that are read again for each place that changed. Half are the tokens right after the edit, a
            quarter are later repetitions of the edited phrase, the rest are the last tokens of the text; with windows,
            un-rotated keys or kernels that take no mask, all are right after the edit. None: 256; 0: none, as in the
            paper.
        compiled: Whether a CUDA graph moves keys and reads tokens. None: from a model's second edit on, if it can
            (half precision on one GPU, stock attention without windows, at most 1,024 tokens to read). The graph keeps
            buffers as large as the longest cache; `hf_longctx.editing.forget_graph(decoder)` frees them. True: now,
            and ValueError if it cannot; False: never.
    """
    begun = time.perf_counter()
    parts = parts_of(unwrap(model))
    decoder, modules, _ = parts
    repair = repair_of(repair)
    check_model(decoder)
    old, new = ids_of(old_ids, "old_ids", decoder), ids_of(new_ids, "new_ids", decoder)
    n_cached = check_cache(decoder, modules, cache, len(old))
    difference = compare(old, new, n_cached)
    plan = make_plan(difference, repair, cache.layers, anywhere=why_not_placed(decoder, modules, cache) is None)
    row = RowEdit(plan.copies, plan.read, new[:-1])
    seconds_diff = time.perf_counter() - begun

    def plain() -> tuple[list[Any], float]:
        check_tokens(decoder, modules, cache, [old[:n_cached]])
        return ([], 0.0) if difference.nothing else _move_and_read(decoder, modules, cache, row, plan)

    fast = compiled is not False and not difference.nothing
    works, seconds_move = graph.from_graph(plain, parts, cache, row, compiled) if fast else plain()
    commit(modules, works, cache)
    seconds = time.perf_counter() - begun
    return cache, report_of(difference, plan, (seconds, seconds_diff, seconds_move))


def _move_and_read(
    decoder: Any, modules: Sequence[Any], cache: Cache, row: RowEdit, plan: EditPlan
) -> tuple[list[Any], float]:
    """Finished layers, still beside the caller's, and the seconds that moving keys took."""
    begun = time.perf_counter()
    works: list[Any]
    if placed := sum(map(len, plan.read)) <= CHUNK and why_not_placed(decoder, modules, cache) is None:
        works = placed_works(decoder, modules, cache, [row], len(row.ids))
    else:
        layers: Any = cache.layers
        mover = Mover(decoder)
        works = [work_on(layers[int(m.layer_idx)], plan.copies, len(row.ids), partial(mover.move, m)) for m in modules]
    seconds_move = time.perf_counter() - begun
    device = device_of(decoder, cache)
    if placed:
        read_placed(decoder, works, [row], device, CHUNK)
    else:
        for run in plan.runs:
            _read_run(decoder, works, row, run, device)
    return works, seconds_move


def _read_run(decoder: Any, works: Sequence[Any], row: RowEdit, run: Span, device: torch.device) -> None:
    """Read consecutive tokens, of which the layers keep those that the plan reads."""
    for start in range(run.start, run.end, CHUNK):
        chunk = Span(start, min(start + CHUNK, run.end))
        kept = [part for span in row.read if len(part := span.cut(chunk))]
        for work in works:
            work.begin(chunk, kept)
        decoder(
            input_ids=torch.from_numpy(row.ids[None, chunk.start : chunk.end]).to(device),
            position_ids=torch.arange(chunk.start, chunk.end, device=device)[None],
            **given_cache(decoder, Cache(layers=list(works))),
            use_cache=True,
        )
        if not all(work.written for work in works):
            raise caches_nothing(decoder)


def commit(modules: Sequence[Any], works: Sequence[Any], cache: Cache) -> None:
    """Put finished layers into the caller's cache."""
    for module, work in zip(modules, works, strict=False):  # no works if nothing changes
        work.commit(cache.layers[int(module.layer_idx)])


def device_of(decoder: Any, cache: Cache) -> torch.device:
    """The device of a forward's inputs: offloaded weights are on "meta", and keys are where they were computed."""
    layers: Any = cache.layers
    device: torch.device = decoder.device if decoder.device.type != "meta" else layers[0].keys.device
    return device


def report_of(difference: Difference, plan: EditPlan, seconds: tuple[float, float, float]) -> EditReport:
    """The report of an edit; seconds in all, of finding differences and of moving keys."""
    found = sum(n for _, _, n in difference.found)
    copied = sum(n for _, _, n in plan.copies)
    kept = sum(n for old, new, n in plan.copies if old == new)
    return EditReport(
        edits=difference.edits,
        kept=kept,
        moved=copied - kept,
        forwarded=difference.n_new - found,
        repaired=found - copied,
        reread=sum(map(len, plan.runs)) - sum(map(len, plan.read)),
        deleted=difference.deleted,
        seconds=seconds[0],
        seconds_diff=seconds[1],
        seconds_move=seconds[2],
        seconds_forward=seconds[0] - seconds[1] - seconds[2],
    )
