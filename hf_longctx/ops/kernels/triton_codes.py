"""Scores by binary codes in Triton, for few queries: every block of slots leaves the best score of each table.

A flat scan is bound by unpacking bits. Estimated from instructions, for codes of 128 channels and four heads of a
group: a query in 4 bits and POPC (RaBitQ's way for vectors) takes 64 POPC of a code, of which a multiprocessor of an
H100 does 16 per clock, so 4 clocks; unpacking one channel at a time takes about 6. Here it is 1.3: compiled for it, 64
codes are 340 instructions of a warp, 128 of which unpack. A byte of a code is in a register as a 16-bit number, and one
AND leaves a bit of two channels, which read as fp16 is 0 or 2^(bit - 24), an exact operand of the tensor cores; the
query's operand, fp16, undoes the power of two. A product with a matrix of zeros and ones brings the bytes to the
registers where the next product expects them, without shared memory. `triton_bits` unpacks nothing, where it runs.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, G key/value heads, R = H / G, L queries, D head dim, C channels, W words of a code, WP and RP
# powers of two from W and R on, NQ columns: RP for each of some queries
from __future__ import annotations

import triton
import triton.language as tl

from .triton_range import widen

TILES = tl.constexpr(16)  # blocks of 64 slots of a program; a page holds a multiple of them
AT_ONCE = tl.constexpr(2)  # of them, in code without a loop


@triton.jit(do_not_specialize=["G", "L", "zeros"])
def _prepare(q, turn, mean, width, operand, half, base, factor, state, cos, sin, moved, q_b, q_h, q_l, m_b, m_h, m_l,
             G, L, zeros, D: tl.constexpr, R2: tl.constexpr, DIMS: tl.constexpr, C: tl.constexpr, WP: tl.constexpr,
             R: tl.constexpr, RP: tl.constexpr, NQ: tl.constexpr, K: tl.constexpr, QUERY: tl.constexpr,
             STEP: tl.constexpr, BY_BITS: tl.constexpr):  # fmt: skip
    """Queries as operands: turned, times the widths, in whole steps, each channel scaled for its bit.

    QUERY is the number of bits of a channel; STEP the size of one over the query's norm times the largest width. With
    BY_BITS the operand is the words of each bit, as `triton_bits` reads them. `state` becomes zeros, for who scores.
    With R2 queries are rotated first, R2 dims with R2 others, and left in `moved`.
    """
    programs = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
    mine = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
    for start in range(mine * 256, zeros, programs * 256):
        zero = start + tl.arange(0, 256)
        tl.store(state + zero, zero * 0, zero < zeros)
    b, g, piece = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G, tl.program_id(1)
    at = (tl.program_id(0) * tl.num_programs(1) + piece).to(tl.int64)
    column, channel = tl.arange(0, NQ), tl.program_id(2) * 32 + tl.arange(0, 32)
    r, l = column % RP, piece * (NQ // RP) + column // RP
    live = (r < R) & (l < L)
    from_q = q + b * q_b + (g * R + r) * q_h + l * q_l
    turned_NC = tl.zeros((NQ, 32), tl.float32)
    centre, square = tl.zeros((NQ,), tl.float32), tl.zeros((NQ,), tl.float32)
    for start in range(0, D, DIMS):  # a product of all dims at once would take the compiler long, and many registers
        dim = start + tl.arange(0, DIMS)
        q_ND = tl.load(from_q[:, None] + dim[None], live[:, None] & (dim < D)[None], 0.0).to(tl.float32)
        if R2 > 0:
            inside, low = dim < 2 * R2, dim < R2
            pair = from_q[:, None] + tl.where(low, dim + R2, dim - R2)[None]
            pair_ND = tl.load(pair, live[:, None] & inside[None], 0.0).to(tl.float32)
            c, s = tl.load(cos + dim, inside, 1.0).to(tl.float32), tl.load(sin + dim, inside, 0.0).to(tl.float32)
            turned = q_ND * c[None] + pair_ND * tl.where(low, -s, s)[None]
            moved_ND = turned.to(moved.dtype.element_ty)
            to = moved + b * m_b + (g * R + r) * m_h + l * m_l
            if tl.program_id(2) == 0:
                tl.store(to[:, None] + dim[None], moved_ND, live[:, None] & (dim < D)[None])
            q_ND = moved_ND.to(tl.float32)
        turn_DC = tl.load(turn + dim[:, None] * C + channel[None], (dim < D)[:, None] & (channel < C)[None], 0.0)
        turned_NC = tl.dot(q_ND, turn_DC, turned_NC, input_precision="ieee")
        square += tl.sum(q_ND * q_ND, 1)
        centre += tl.sum(q_ND * tl.load(mean + at // tl.num_programs(1) * D + dim, dim < D, 0.0)[None], 1)
    every = tl.arange(0, 32 * WP)
    widths = tl.load(width + at // tl.num_programs(1) * C + every, every < C, 0.0)
    wide = tl.sum(tl.where(every[None] == channel[:, None], widths[None], 0.0), 1)
    wide_NC = turned_NC * wide[None]
    most: tl.constexpr = 2 ** (QUERY - 1)
    step = tl.sqrt(square) * tl.max(widths, 0) * STEP
    step = tl.where(step > 0.0, step, 1.0)
    whole_NC = tl.minimum(tl.maximum(tl.floor(wide_NC / step[:, None] + 0.5), -most), most - 1.0)
    part = tl.sum(whole_NC, 1) * 3.814697265625e-06  # 2^-18: half of what all bits give
    tl.store(half + (at * WP + tl.program_id(2)) * NQ + column, part)
    if tl.program_id(2) == 0:
        tl.store(base + at * NQ + column, tl.where(live, centre, float("-inf")))
        tl.store(factor + at * NQ + column, step * 262144.0)
    if BY_BITS:
        number_NC, word = whole_NC.to(tl.int32), tl.program_id(2)
        there = operand + (at * (NQ // 4) + column // 4) * (((WP + 3) // 4) * QUERY * 16)
        there += word // 4 * (QUERY * 16) + column % 4 * 8 + word % 4
        for i in tl.static_range(QUERY):
            bits = tl.sum(((number_NC >> i) & 1) << tl.arange(0, 32)[None], 1)
            tl.store(there + i // 2 * 32 + i % 2 * 4, bits)
    else:
        bit, byte = channel % 8, channel // 8
        power = ((134 - bit) << 23).to(tl.float32, bitcast=True)  # 2^(7 - bit)
        operand_NC = (whole_NC * power[None]).to(tl.float16)
        copies: tl.constexpr = K // (4 * WP)
        to = (bit // copies)[None] * (NQ * K) + column[:, None] * K + ((bit % copies) * (4 * WP) + byte)[None]
        tl.store(operand + at * (NQ * 32 * WP) + to, operand_NC)


@triton.jit
def operands(operand, columns, stride, K: tl.constexpr, WP: tl.constexpr):
    """The prepared queries of some columns; 0 where one is below 0."""
    k, held = tl.arange(0, K), ()
    for j in tl.static_range(32 * WP // K):
        at = operand + j * stride + k[:, None] + K * columns[None]
        more = tl.load(at, (columns >= 0)[None], 0.0)
        held = held + (more,)  # type: ignore[assignment]  # noqa: RUF005  # Triton unpacks no tuples
    return held


@triton.jit
def laid_out(words, W: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """The codes of a block of slots, (ROWS, BYTES): row r has that of slot r, then those of r + ROWS and so on."""
    row, byte = tl.arange(0, ROWS), tl.arange(0, BYTES)
    if ROWS == 64:
        return tl.load(words + row[:, None] * (4 * W) + tl.minimum(byte, 4 * W - 1)[None])
    return tl.load(words + row[:, None] * (4 * W) + (byte // (4 * W) * (ROWS * 4 * W) + byte % (4 * W))[None])


@triton.jit
def scored(bytes_NB, i: tl.constexpr, held, half, base, factor, size_N, W: tl.constexpr, WP: tl.constexpr,
           K: tl.constexpr, BYTES: tl.constexpr):  # fmt: skip
    """The scores of the i-th slot of every row, (ROWS, NQ); `factor` is of its columns."""
    byte, k = tl.arange(0, BYTES), tl.arange(0, K)
    copies: tl.constexpr = K // (4 * WP)
    bring = (byte[:, None] == (4 * W * i + k % (4 * WP))[None]).to(tl.int8)
    byte_NK = tl.dot(bytes_NB, bring, out_dtype=tl.int32).to(tl.int16)
    acc = tl.zeros((bytes_NB.shape[0], half.shape[0]), tl.float32) - half[None]
    for j in tl.static_range(8 // copies):
        bit = (1 << (copies * j + k // (4 * WP))).to(tl.int16)
        acc = tl.dot((byte_NK & bit[None]).to(tl.float16, bitcast=True), held[j], acc)
    return acc * factor[None] * size_N[:, None] + base[None]


@triton.jit
def _tiles(words_at, size_at, pos_at, room, first, held, half_N, base_N, factor_N, earliest, latest_N, best, row_T,
           wanted_T, blocks, W: tl.constexpr, WP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, NQ: tl.constexpr,
           K: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
           WHOLE: tl.constexpr):  # fmt: skip
    """The best score of each of some blocks, for each table, and the highest and lowest of these.

    With WHOLE all queries see all of the slots, and no score need be compared with where it stands.
    """
    row = tl.arange(0, ROWS)
    TABLES: tl.constexpr = NQ if HEADS else NQ // RP
    high_T, low_T = tl.full((TABLES,), float("-inf"), tl.float32), tl.full((TABLES,), float("inf"), tl.float32)
    # operands are brought to where the tensor cores read them once for some tiles, not for each of them
    for begin in range(0, tl.cdiv(room, 64), AT_ONCE):
        for more in tl.static_range(AT_ONCE):
            tile = begin + more
            # what lies behind the last slot is read, as a page is whole, and not seen
            bytes_NB = laid_out(words_at + tile * (64 * 4 * W), W, ROWS, BYTES)
            for i in tl.static_range(64 // ROWS):
                slot = tile * 64 + i * ROWS + row
                size_R = tl.load(size_at + slot).to(tl.float32)
                scores = scored(bytes_NB, i, held, half_N, base_N, factor_N, size_R, W, WP, K, BYTES)
                if not WHOLE:
                    pos_R = tl.load(pos_at + slot, slot < room, -1).to(tl.int32)
                    seen = (pos_R > earliest)[:, None] & (pos_R[:, None] <= latest_N[None])
                    scores = tl.where(seen, scores, float("-inf"))
                if i == 0:  # noqa: SIM108  # there is nothing yet to compare with
                    top_RN = scores
                else:
                    top_RN = tl.maximum(top_RN, scores)
            top_T = tl.max(top_RN, 0)
            if not HEADS:
                top_T = tl.max(tl.reshape(top_T, (NQ // RP, RP)), 1)
            tl.store(best + row_T * blocks + first // 64 + tile, top_T, wanted_T)
            high_T = tl.maximum(high_T, top_T)
            low_T = tl.minimum(low_T, tl.where(top_T > float("-inf"), top_T, float("inf")))
    return high_T, low_T


@triton.jit(do_not_specialize=["near", "pages", "G", "L", "T"])
def _maxima(q_pos, words, size, pos, filled, ready, after, operand, half, base, factor, best, state, asked, near,
            pages, G, L, T, blocks, PAGE: tl.constexpr, W: tl.constexpr, WP: tl.constexpr, R: tl.constexpr,
            RP: tl.constexpr, NQ: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr,
            HEADS: tl.constexpr, ASKED: tl.constexpr):  # fmt: skip
    """Some blocks of one row's group of heads: the best score of each."""
    g, first = tl.program_id(0) % G, tl.program_id(0) // G * (TILES * 64)
    b, piece, pieces = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    end = tl.load(filled + b)
    if ASKED:
        end *= tl.load(asked + g)
    if first >= end:
        return
    at = (b * G + g) * pieces + piece
    column = tl.arange(0, NQ)
    r, l = column % RP, piece * (NQ // RP) + column // RP
    live = (r < R) & (l < L)
    if HEADS:
        row_T, wanted_T = (b * T + g * R + r) * L + l, live
    else:
        query = piece * (NQ // RP) + tl.arange(0, NQ // RP)
        row_T, wanted_T = (b * T + g) * L + query, query < L
    page = b * pages + first // PAGE
    inside = tl.multiple_of(first % PAGE, 64)
    words_at = tl.multiple_of(tl.load(words + page).to(tl.pointer_type(tl.int8)), 16) + (g * PAGE + inside) * (4 * W)
    size_at = tl.multiple_of(tl.load(size + page).to(tl.pointer_type(tl.float16)), 16) + g * PAGE + inside
    pos_at = tl.multiple_of(tl.load(pos + page).to(tl.pointer_type(tl.int64)), 16) + inside
    room = tl.minimum(end - first, TILES * 64).to(tl.int32)
    # no text has 2^31 tokens
    earliest, start = tl.maximum(tl.load(after + b), -1).to(tl.int32), tl.load(ready + b)
    here_N = tl.load(q_pos + b * L + l, live, -1)
    latest_N = tl.where(here_N >= start, tl.maximum(here_N - near, -1), -1).to(tl.int32)
    every = tl.arange(0, TILES * 64)
    pos_S = tl.load(pos_at + every, every < room, -1).to(tl.int32)
    least = tl.min(tl.where(live, latest_N, 2147483647), 0)
    whole = (tl.min(pos_S, 0) > earliest) & (tl.max(pos_S, 0) <= least)
    held = operands(operand + at * (NQ * 32 * WP), column, NQ * K, K, WP)
    part = tl.arange(0, WP)
    half_N = tl.sum(tl.load(half + (at * WP + part)[:, None] * NQ + column[None]), 0)
    base_N, factor_N = tl.load(base + at * NQ + column), tl.load(factor + at * NQ + column)
    if whole:  # nearly always
        high_T, low_T = _tiles(words_at, size_at, pos_at, room, first, held, half_N, base_N, factor_N, earliest,
                               latest_N, best, row_T, wanted_T, blocks, W, WP, R, RP, NQ, K, BYTES, ROWS, HEADS,
                               True)  # fmt: skip
    else:
        high_T, low_T = _tiles(words_at, size_at, pos_at, room, first, held, half_N, base_N, factor_N, earliest,
                               latest_N, best, row_T, wanted_T, blocks, W, WP, R, RP, NQ, K, BYTES, ROWS, HEADS,
                               False)  # fmt: skip
    widen(state, row_T, high_T, low_T, wanted_T)
