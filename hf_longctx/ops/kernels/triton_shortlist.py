"""From the best tokens by their codes to the best by their real keys, in Triton.

The shortlist is scored with its keys, which are read where they lie. A token's rank is then the number of tokens that
are better, counted over all of them by programs that need not wait for each other: there is no sort.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, T tables, L queries, R query heads of a table, D head dim
from __future__ import annotations

import triton
import triton.language as tl

TOKENS = tl.constexpr(32)  # of a program
BESIDE = tl.constexpr(128)  # tokens that are compared with at once


@triton.jit
def _rank(score_N, slot_N, live_N, score, slot, number):
    """How many tokens are better than each of these; of equal ones that with the lower slot is."""
    worse, other = tl.zeros((TOKENS, BESIDE), tl.int32), tl.arange(0, BESIDE)
    # what costs time is to wait for them: those of the next rounds are on their way
    for start in tl.range(0, number, BESIDE, num_stages=4):
        there = start + other < number
        beside = tl.load(score + start + other, there, float("-inf"))
        at = tl.load(slot + start + other, there, 2147483647)
        better = (beside[None] > score_N[:, None]) | ((beside[None] == score_N[:, None]) & (at[None] < slot_N[:, None]))
        worse += (better & there[None]).to(tl.int32)
    return tl.where(live_N, tl.sum(worse, 1), 2147483647)


@triton.jit(do_not_specialize=["pages", "G", "L", "shortlist"])
def _shortlist(q, k, found, slot, real, like, q_b, q_h, q_l, pages, G, L, shortlist, PAGE: tl.constexpr,
               D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, NC: tl.constexpr,
               HEADS: tl.constexpr):  # fmt: skip
    """Some tokens of a row's shortlist, scored with their real keys."""
    row = tl.program_id(1).to(tl.int64)
    first, number = tl.program_id(0) * TOKENS, tl.load(found + row)
    if first >= number:
        return
    T = G * R if HEADS else G
    b, table, l = row // (T * L), row // L % T, row % L
    g = table // R if HEADS else table
    column, dim, token = tl.arange(0, NC), tl.arange(0, DP), first + tl.arange(0, TOKENS)
    live_q, live = column < (1 if HEADS else R), token < number
    head = table if HEADS else g * R + column
    from_q = q + b * q_b + (head + column * 0)[:, None] * q_h + l * q_l + dim[None]
    q_CD = tl.load(from_q, live_q[:, None] & (dim < D)[None], 0.0)
    slot_N = tl.load(slot + row * shortlist + token, live, 0)
    # 16 bytes to each thread: with 2 to each, rows in host memory would cross PCIe in requests of half a line
    page = tl.load(k + b * pages + slot_N // PAGE, live, 0).to(tl.pointer_type(like.dtype.element_ty))
    at = tl.multiple_of(page, 16) + (g * PAGE + slot_N % PAGE) * D
    key_ND = tl.load(at[:, None] + dim[None], live[:, None] & (dim < D)[None], 0.0)
    scores = tl.dot(key_ND, tl.trans(q_CD), input_precision="ieee")
    best = tl.max(tl.where(live_q[None], scores, float("-inf")), 1)
    tl.store(real + row * shortlist + token, best, live)


@triton.jit(do_not_specialize=["k", "shortlist"])
def _last(found, real, slot, table, k, shortlist, LEFT: tl.constexpr):
    """The best k of a row by their real keys, in order; -1 where there are fewer."""
    row = tl.program_id(1).to(tl.int64)
    number = tl.load(found + row)
    if tl.program_id(0) == 0:
        left = tl.arange(0, LEFT)
        tl.store(table + row * k + left, tl.full((LEFT,), -1, tl.int64), (left >= number) & (left < k))
    real += row * shortlist
    slot += row * shortlist
    for start in range(tl.program_id(0) * TOKENS, number, tl.num_programs(0) * TOKENS):
        token = start + tl.arange(0, TOKENS)
        live = token < number
        score_N, slot_N = tl.load(real + token, live, float("-inf")), tl.load(slot + token, live, 0)
        rank = _rank(score_N, slot_N, live, real, slot, number)
        tl.store(table + row * k + rank, slot_N.to(tl.int64), rank < k)
