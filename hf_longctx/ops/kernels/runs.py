"""Packed documents by a kernel that knows none: one call a run of rows, or two where a run has keys of earlier tokens.

The keys before a run's square are seen by all of its queries. Both parts are merged by log-sum-exp.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..dtypes import as_dtype
from ..masks import Causal, Full, Mask, Window
from ..merge import merge_into
from ..positions import Positions
from .base import Call, Kernel, inside_of

# pairs x heads x head dim of a part, on average, from which a call of its own is worth its launch. On two H200s,
# forward, forward again and backward of one document that is cut: 8k, 32/8 heads of 64 (2^33.4 a part), 4.4 ms by cuDNN
# and 3.4 by flash attention in one call; 16k, 9/3 heads (2^33.6), 3.7 and 3.8; 16k, 32/8 heads (2^35.4), 7.9 and 10.4
WORK = 2**34
# keys of a run, on average, and its tokens times heads, below which a window of its own is not worth its launch. On an
# H100, eight documents of 8k, window 1,024, forward: with 9 heads 2.2 ms by the Triton kernel and 1.2 by flash
# attention, with 32 heads 2.1 and 3.7
LONG = 2048
ENOUGH = 2**17


class Run(NamedTuple):
    """The queries of a run that see a key, and the keys that they see, in parts, each with its own mask."""

    rows: slice
    parts: tuple[tuple[slice, Mask], ...]


def runs(call: Call) -> tuple[Run, ...]:
    """The runs of a call with segments that have both queries and keys."""
    return _runs(_lengths(call), inside_of(call.mask))


def sizes(call: Call) -> frozenset[tuple[int, int]]:
    """Queries and keys of the calls that packed documents take, each size once."""
    return _sizes(_lengths(call), inside_of(call.mask))


def short(call: Call, q_BHLD: Tensor) -> str | None:
    """Why one call of flash attention for all runs is faster than one call a part; None if it is not."""
    tokens, lengths, heads = call.positions.k_pos_BS.shape[1], _lengths(call), q_BHLD.shape[1]
    if isinstance(inside_of(call.mask), Window):
        number = len(lengths)
        if tokens < LONG * number or (number > 1 and tokens * heads < ENOUGH * number):
            return f"windows of documents of {tokens // number} tokens and {heads} heads are faster in one call"
        return None
    pairs, parts = _pairs(lengths, inside_of(call.mask))
    if pairs * heads * q_BHLD.shape[3] < WORK * parts:
        return f"{parts} parts of {pairs // max(parts, 1)} pairs and {heads} heads are faster in one call"
    return None


def _lengths(call: Call) -> tuple[tuple[int, int], ...]:
    assert call.positions.segments is not None
    return call.positions.segments.lengths


@lru_cache(maxsize=16)  # every layer of a forward asks for the same
def _runs(lengths: tuple[tuple[int, int], ...], inside: Mask) -> tuple[Run, ...]:
    found = []
    q_end = k_end = 0
    for queries, keys in lengths:
        q_end, k_end, square = q_end + queries, k_end + keys, min(queries, keys)
        if not square:
            continue
        if not isinstance(inside, Causal):
            found.append(Run(slice(q_end - queries, q_end), ((slice(k_end - keys, k_end), inside),)))
            continue
        parts: list[tuple[slice, Mask]] = [(slice(k_end - square, k_end), inside)]
        if keys > square:
            parts.insert(0, (slice(k_end - keys, k_end - square), Full()))
        found.append(Run(slice(q_end - square, q_end), tuple(parts)))  # queries before the first key see nothing
    return tuple(found)


@lru_cache(maxsize=16)
def _sizes(lengths: tuple[tuple[int, int], ...], inside: Mask) -> frozenset[tuple[int, int]]:
    return frozenset((queries, keys) for queries, keys, _ in _part_sizes(lengths, inside))


@lru_cache(maxsize=16)
def _pairs(lengths: tuple[tuple[int, int], ...], inside: Mask) -> tuple[int, int]:
    """How many pairs there are in all parts, and how many parts."""
    each = [
        queries * keys // 2 if isinstance(mask, Causal) else queries * keys
        for queries, keys, mask in _part_sizes(lengths, inside)
    ]
    return sum(each), len(each)


def _part_sizes(lengths: tuple[tuple[int, int], ...], inside: Mask) -> Iterator[tuple[int, int, Mask]]:
    """Queries, keys and mask of each part."""
    for rows, parts in _runs(lengths, inside):
        for columns, mask in parts:
            yield rows.stop - rows.start, columns.stop - columns.start, mask


def forward(kernel: Kernel, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`Kernel.forward` of packed documents, by calls of the kernel on plain ones."""
    B, H, L, _ = q.shape
    found = runs(call)
    alone = _alone(found, q, k)
    if alone is not None:
        return kernel.forward(_plain(call, *alone), q, k, v)
    wide = torch.promote_types(q.dtype, torch.float32)
    merged = any(len(run.parts) > 1 for run in found)
    out = q.new_empty(B, L, H, v.shape[-1], dtype=wide if merged else q.dtype)
    lse = q.new_empty((B, H, L), dtype=wide)
    if sum(run.rows.stop - run.rows.start for run in found) < L:  # rows without any key
        out.zero_()
        lse.fill_(float("-inf"))
    for rows, parts in found:
        for n, (columns, mask) in enumerate(parts):
            part = kernel.forward(_plain(call, rows, columns, mask), *_cut(rows, columns, q, k, v))
            out_part, lse_part = _stretch(out, 1, rows), _stretch(lse, 2, rows)
            if n:
                merge_into(out_part, lse_part, *part)
            else:
                out_part.copy_(part[0])
                lse_part.copy_(part[1])
    return out, lse


def gradients(kernel: Kernel, call: Call, given: Sequence[Tensor]) -> list[Tensor]:
    """`Kernel.gradients` of packed documents, by calls of the kernel on plain ones; `given` are its other arguments."""
    _, q, k, v, *_ = given
    if _alone(runs(call), q, k) is not None:
        return [grad for *_, part in _each_part(kernel, call, given) for grad in part]
    # queries with two parts are summed in fp32
    wide = torch.promote_types(q.dtype, torch.float32) if any(len(run.parts) > 1 for run in runs(call)) else q.dtype
    totals = [torch.zeros_like(x, dtype=dtype) for x, dtype in ((q, wide), (k, k.dtype), (v, v.dtype))]
    for n, rows, columns, part in _each_part(kernel, call, given):
        totals[0][:, :, rows] = totals[0][:, :, rows] + part[0] if n else part[0]
        totals[1][:, :, columns], totals[2][:, :, columns] = part[1:]
    return totals


def add_gradients(kernel: Kernel, call: Call, given: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Add the `gradients` of packed documents to buffers, part by part."""
    for _, rows, columns, part in _each_part(kernel, call, given):
        for buffer, stretch, found in zip(into, (rows, columns, columns), part, strict=True):
            _stretch(buffer, 2, stretch).add_(found)


def _each_part(
    kernel: Kernel, call: Call, given: Sequence[Tensor]
) -> Iterator[tuple[int, slice, slice, Sequence[Tensor]]]:
    """Its number in its run, rows, columns and gradients of each part."""
    grad, q, k, v, out, lse = given
    grad, out = (as_dtype(x, q.dtype).contiguous() for x in (grad, out))  # kernels want equal strides of both
    for rows, parts in runs(call):
        for n, (columns, mask) in enumerate(parts):
            of_rows = _stretch(out, 1, rows), _stretch(lse, 2, rows)
            args = _stretch(grad, 1, rows), *_cut(rows, columns, q, k, v), *of_rows
            yield n, rows, columns, kernel.gradients(_plain(call, rows, columns, mask), *args)


def _alone(found: tuple[Run, ...], q: Tensor, k: Tensor) -> tuple[slice, slice, Mask] | None:
    """Rows, columns and mask of the one part that there is, if it is all of the call: its results need no copy."""
    if len(found) != 1 or len(found[0].parts) != 1:
        return None
    rows, ((columns, mask),) = found[0]
    every = slice(0, q.shape[2]), slice(0, k.shape[2])
    return (rows, columns, mask) if (rows, columns) == every else None


def _cut(rows: slice, columns: slice, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _stretch(q, 2, rows), _stretch(k, 2, columns), _stretch(v, 2, columns)


def _stretch(x: Tensor, dim: int, rows: slice) -> Tensor:
    """Successive rows in this dim; the tensor itself where they are all, since every view costs the host some time."""
    size = rows.stop - rows.start
    return x if size == x.shape[dim] else x.narrow(dim, rows.start, size)


def _plain(call: Call, rows: slice, columns: slice, mask: Mask) -> Call:
    """The call of one part. Only the keys of `Full` need not end with the queries."""
    q_pos, k_pos = _stretch(call.positions.q_pos_BL, 1, rows), _stretch(call.positions.k_pos_BS, 1, columns)
    consecutive = call.positions.consecutive and not isinstance(mask, Full)
    positions = Positions(q_pos, k_pos, isinstance(mask, Causal), consecutive, padded=False)
    return replace(call, positions=positions, mask=mask)
