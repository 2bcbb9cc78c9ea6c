"""From the tokens that reach a bound to the best by their real keys, in Triton.

A token's rank is the number of tokens that are better, counted over all of them by programs that need not wait for each
other: there is no sort. The first `shortlist` by their codes are scored with their keys, which are read where they lie,
and ranked again.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, T tables, L queries, R query heads of a table, D head dim
from __future__ import annotations

import triton
import triton.language as tl

PROGRAMS = 32  # of a row


@triton.jit
def _rank(score_N, slot_N, live_N, score, slot, number):
    """How many tokens are better than each of these; of equal ones that with the lower slot is."""
    worse, other = tl.zeros((64, 64), tl.int32), tl.arange(0, 64)
    for start in range(0, number, 64):
        there = start + other < number
        beside = tl.load(score + start + other, there, float("-inf"))
        at = tl.load(slot + start + other, there, 2147483647)
        better = (beside[None] > score_N[:, None]) | ((beside[None] == score_N[:, None]) & (at[None] < slot_N[:, None]))
        worse += (better & there[None]).to(tl.int32)
    return tl.where(live_N, tl.sum(worse, 1), 2147483647)


@triton.jit
def _shortlist(q, k, found, score, slot, real, real_slot, like, q_b, q_h, q_l, pages, G, L, most, shortlist,
               PAGE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, NC: tl.constexpr,
               HEADS: tl.constexpr):  # fmt: skip
    """The best `shortlist` of a row by their codes, in order, scored with their real keys."""
    row = tl.program_id(1).to(tl.int64)
    T = G * R if HEADS else G
    b, table, l = row // (T * L), row // L % T, row % L
    g = table // R if HEADS else table
    number = tl.load(found + row)
    score += row * most
    slot += row * most
    column, dim, token = tl.arange(0, NC), tl.arange(0, DP), tl.arange(0, 64)
    live_q = column < (1 if HEADS else R)
    head = table if HEADS else g * R + column
    from_q = q + b * q_b + (head + column * 0)[:, None] * q_h + l * q_l + dim[None]
    q_CD = tl.load(from_q, live_q[:, None] & (dim < D)[None], 0.0)
    for start in range(tl.program_id(0) * 64, number, 64 * tl.num_programs(0)):
        live = start + token < number
        score_N = tl.load(score + start + token, live, float("-inf"))
        slot_N = tl.load(slot + start + token, live, 0)
        rank = _rank(score_N, slot_N, live, score, slot, number)
        short = rank < shortlist
        page = tl.load(k + b * pages + slot_N // PAGE, short, 0)
        at = page.to(tl.pointer_type(like.dtype.element_ty)) + (g * PAGE + slot_N % PAGE) * D
        key_ND = tl.load(at[:, None] + dim[None], short[:, None] & (dim < D)[None], 0.0)
        scores = tl.dot(key_ND, tl.trans(q_CD), input_precision="ieee")
        best = tl.max(tl.where(live_q[None], scores, float("-inf")), 1)
        tl.store(real + row * shortlist + rank, best, short)
        tl.store(real_slot + row * shortlist + rank, slot_N, short)


@triton.jit
def _last(found, real, real_slot, table, k, shortlist, LEFT: tl.constexpr):
    """The best k of a row by their real keys, in order; -1 where there are fewer."""
    row = tl.program_id(1).to(tl.int64)
    number = tl.minimum(tl.load(found + row), shortlist)
    if tl.program_id(0) == 0:
        left = tl.arange(0, LEFT)
        tl.store(table + row * k + left, tl.full((LEFT,), -1, tl.int64), (left >= number) & (left < k))
    token = tl.program_id(0) * 64 + tl.arange(0, 64)
    if tl.program_id(0) * 64 >= number:
        return
    live = token < number
    real += row * shortlist
    real_slot += row * shortlist
    score_N, slot_N = tl.load(real + token, live, float("-inf")), tl.load(real_slot + token, live, 0)
    rank = _rank(score_N, slot_N, live, real, real_slot, number)
    tl.store(table + row * k + rank, slot_N.to(tl.int64), rank < k)
