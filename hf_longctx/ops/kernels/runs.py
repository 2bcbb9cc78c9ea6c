"""Packed documents by a kernel that knows none: one call a run of rows, or two where a run has keys of earlier tokens.

The keys before a run's square are seen by all of its queries. Both parts are merged by log-sum-exp.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..masks import Causal, Full, Mask
from ..merge import merge
from ..positions import Positions
from .base import Call, Kernel, inside_of

# keys of a run, on average, from which a call of its own is worth its launch. On an H100, 64k tokens in ten documents,
# 32/8 heads of 64, forward and backward: 8.2 + 22.7 ms by cuDNN in ten calls, 12.6 + 34 ms by flash attention in one
LONG = 2048


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


def short(call: Call) -> str | None:
    """Why one call of flash attention for all runs is faster than one call a run; None if it is not."""
    if call.positions.k_pos_BS.shape[1] < LONG * len(_lengths(call)):
        return f"documents of fewer than {LONG} tokens, on average, are faster in one call of flash attention"
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
    return frozenset(
        (run.rows.stop - run.rows.start, columns.stop - columns.start)
        for run in _runs(lengths, inside)
        for columns, _ in run.parts
    )


def forward(kernel: Kernel, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`Kernel.forward` of packed documents, by calls of the kernel on plain ones."""
    B, H, L, _ = q.shape
    found = runs(call)
    wide = torch.promote_types(q.dtype, torch.float32)
    merged = any(len(run.parts) > 1 for run in found)
    out = q.new_zeros(B, L, H, v.shape[-1], dtype=wide if merged else q.dtype)
    lse = q.new_full((B, H, L), float("-inf"), dtype=wide)
    for rows, parts in found:
        for n, (columns, mask) in enumerate(parts):
            part = kernel.forward(_plain(call, rows, columns, mask), *_cut(rows, columns, q, k, v))
            if n:
                part = merge(out[:, rows], lse[:, :, rows], *part)
            out[:, rows], lse[:, :, rows] = part
    return out, lse


def gradients(
    kernel: Kernel, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
) -> list[Tensor]:
    """`Kernel.gradients` of packed documents, by calls of the kernel on plain ones."""
    found = runs(call)
    grad, out = (x.to(q.dtype).contiguous() for x in (grad_BLHD, out_BLHD))  # kernels want equal strides of both
    totals: list[Tensor] | None = None
    for rows, parts in found:
        for n, (columns, mask) in enumerate(parts):
            args = grad[:, rows], *_cut(rows, columns, q, k, v), out[:, rows], lse_BHL[:, :, rows]
            dq, dk, dv = kernel.gradients(_plain(call, rows, columns, mask), *args)
            if totals is None:
                twice = any(len(run.parts) > 1 for run in found)  # queries with two parts are summed in fp32
                q_dtype = torch.promote_types(dq.dtype, torch.float32) if twice else dq.dtype
                totals = [torch.zeros_like(x, dtype=t) for x, t in ((q, q_dtype), (k, dk.dtype), (v, dv.dtype))]
            totals[0][:, :, rows] = totals[0][:, :, rows] + dq if n else dq
            totals[1][:, :, columns], totals[2][:, :, columns] = dk, dv
    return [torch.zeros_like(x) for x in (q, k, v)] if totals is None else totals


def _cut(rows: slice, columns: slice, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q[:, :, rows], k[:, :, columns], v[:, :, columns]


def _plain(call: Call, rows: slice, columns: slice, mask: Mask) -> Call:
    """The call of one part. Only the keys of `Full` need not end with the queries."""
    q_pos, k_pos = call.positions.q_pos_BL[:, rows], call.positions.k_pos_BS[:, columns]
    consecutive = call.positions.consecutive and not isinstance(mask, Full)
    positions = Positions(q_pos, k_pos, isinstance(mask, Causal), consecutive, padded=False)
    return replace(call, positions=positions, mask=mask)
