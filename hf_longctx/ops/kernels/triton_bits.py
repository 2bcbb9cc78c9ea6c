"""Scores by binary codes on cards whose tensor cores multiply bits (sm_80 to sm_90), in Gluon: Triton with layouts.

What `triton_codes._maxima` computes, for one query of a row, and `triton_best._survivors`, for any number, with codes
as they lie in memory. A query's channel is a whole number of six bits (`triton_codes._prepare`), and a product of bits
counts for every bit of it in how many channels both it and a code's bit are 1: RaBitQ's way for vectors (Gao and Long
2024, section 3.3), with four heads and two bits of them in the columns of one `mma`. Nothing is unpacked: 64 codes of
128 channels are about 200 instructions of a warp, where `triton_codes` has 340 whose logic ones take two cycles each.
"""

# mypy: disable-error-code="no-untyped-def"
# G key/value heads, R query heads of a group, T tables, W words of a code, PAIRS of bits of a query, SETS of four
# heads, NQ columns of a prepared query, four to a set
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..codes import QUERY_BITS
from . import triton_range

widen, begun, note = (gluon.jit(f.fn) for f in (triton_range.widen, triton_range.begun, triton_range.note))
STATE = triton_range.STATE
PAIRS = QUERY_BITS // 2
MMA = "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc"


def _counting(halves: int) -> str:
    """PTX for a warp: of 64 codes and four heads, the sums of the heads' numbers over the bits of a code that are 1.

    A thread has word `lane % 4` of the codes `8 * i + lane / 4` and gets the sums of head `lane % 4` for them. Its
    queries' words are those of the columns of a product: column `2 * head + bit % 2`, a product for each pair of bits.
    """
    words, queries = [8 * (1 + half) for half in range(halves)], [8 * (1 + halves + half) for half in range(halves)]
    lines = ["{", f".reg .s32 c<{4 * PAIRS}>, none;", "mov.s32 none, 0;"]
    for i in range(0, 8, 2):
        for pair in range(PAIRS):
            into = "{" + ", ".join(f"c{4 * pair + n}" for n in range(4)) + "}"
            for half in range(halves):
                codes, query = f"{{${words[half] + i}, ${words[half] + i + 1}}}", f"{{${queries[half] + pair}}}"
                before = into if half else "{none, none, none, none}"
                lines.append(f"{MMA} {into}, {codes}, {query}, {before};")
        for row in range(2):
            bits = [f"c{4 * (bit // 2) + 2 * row + bit % 2}" for bit in range(QUERY_BITS)]
            lines.append(f"mad.lo.s32 ${i + row}, {bits[-1]}, -2, {bits[-2]};")  # two's complement
            lines += [f"mad.lo.s32 ${i + row}, ${i + row}, 2, {bit};" for bit in reversed(bits[:-2])]
    return "\n".join([*lines, "}"])


COUNTING = gl.constexpr(_counting(1))
COUNTING_2 = gl.constexpr(_counting(2))
REGISTERS = gl.constexpr(",".join(8 * ["=&r"] + 16 * ["r"]))
REGISTERS_2 = gl.constexpr(",".join(8 * ["=&r"] + 32 * ["r"]))
HELD = gl.constexpr(8 * PAIRS)  # rows of a query's operand


@gluon.jit
def _operand(planes, at, W: gl.constexpr, NQ: gl.constexpr, SETS: gl.constexpr, HALVES: gl.constexpr,
             LAYOUT: gl.constexpr):  # fmt: skip
    """A query's words as products of bits read them: of each four heads those of each half of the channels."""
    row = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
    word = gl.arange(0, 4, gl.SliceLayout(0, LAYOUT))[None]
    held = ()
    for i in gl.static_range(SETS * HALVES):
        there = planes + (at * (NQ // 4 * HALVES) + i) * (HELD * 4) + row * 4 + word
        held = held + (gl.load(there, (row < HELD) & (i % HALVES * 4 + word < W), 0),)  # type: ignore[assignment]  # noqa: RUF005
    return held


@gluon.jit
def _of_heads(half, base, factor, at, WP: gl.constexpr, NQ: gl.constexpr, SETS: gl.constexpr, LAYOUT: gl.constexpr):
    """Of each four heads what their counts are made scores with."""
    part, column = gl.arange(0, 8, gl.SliceLayout(1, LAYOUT)), gl.arange(0, 4, gl.SliceLayout(0, LAYOUT))
    halves, bases, factors = (), (), ()
    for i in gl.static_range(SETS):
        head = 4 * i + column
        from_half = half + (at * WP + part)[:, None] * NQ + head[None]
        halves = halves + (gl.sum(gl.load(from_half, (part < WP)[:, None], 0.0), 0),)  # type: ignore[assignment]  # noqa: RUF005
        bases = bases + (gl.load(base + at * NQ + head),)  # type: ignore[assignment]  # noqa: RUF005
        factors = factors + (gl.load(factor + at * NQ + head),)  # type: ignore[assignment]  # noqa: RUF005
    return halves, bases, factors


@gluon.jit
def _query(planes, half, base, factor, at, W: gl.constexpr, WP: gl.constexpr, R: gl.constexpr, NQ: gl.constexpr,
           LAYOUT: gl.constexpr):  # fmt: skip
    """A query's operand, and what its counts are made scores with."""
    SETS: gl.constexpr = (R + 3) // 4
    HALVES: gl.constexpr = (W + 3) // 4
    held = _operand(planes, at, W, NQ, SETS, HALVES, LAYOUT)
    halves, bases, factors = _of_heads(half, base, factor, at, WP, NQ, SETS, LAYOUT)
    return held, halves, bases, factors


@gluon.jit
def _seen(q_pos, ready, after, b, query, near):
    """The first position that a row's query looks up, and how many there are from it on. No text has 2^31 tokens."""
    earliest, here = gl.maximum(gl.load(after + b), -1), gl.load(q_pos + query)
    latest = gl.where(here >= gl.load(ready + b), here - near, -1)
    return (earliest + 1).to(gl.int32), gl.maximum(latest - earliest, 0).to(gl.uint32)


@gluon.jit
def _page(words, size, pos, b, g, pages, first, PAGE: gl.constexpr, W: gl.constexpr):
    """Where a slot's codes, size and position lie; a multiple of 64."""
    page, inside = b * pages + first // PAGE, gl.multiple_of(first % PAGE, 64)
    words_at = gl.load(words + page).to(gl.pointer_type(gl.int32)) + (g * PAGE + inside) * W
    size_at = gl.multiple_of(gl.load(size + page).to(gl.pointer_type(gl.float16)), 16) + g * PAGE + inside
    return words_at, size_at, gl.multiple_of(gl.load(pos + page).to(gl.pointer_type(gl.int64)), 16) + inside


@gluon.jit
def _sizes(size_R, pos_R, there, low, span, LAYOUT: gl.constexpr):
    """The sizes of 64 slots' codes, as scores lie; nan, which is never the largest, where one is not looked up."""
    seen = there & ((pos_R.to(gl.int32) - low).to(gl.uint32, bitcast=True) < span)
    size_R = gl.where(seen, size_R.to(gl.float32), float("nan"))
    return gl.convert_layout(size_R, gl.SliceLayout(1, LAYOUT))


@gluon.jit
def _codes(words_at, first, row, column, W: gl.constexpr, HALVES: gl.constexpr):
    """The words of 64 slots' codes, and the second halves of codes of more than four words."""
    words_at += first * W
    # a column without a word of its own reads another one, which counts for nothing: the query's word there is 0
    codes = gl.load((words_at + gl.minimum(column, W - 1))[None] + row[:, None] * W)
    more = gl.load((words_at + gl.minimum(column + 4, W - 1))[None] + row[:, None] * W) if HALVES == 2 else codes
    return codes, more


@gluon.jit
def _scores(codes, more, held, i: gl.constexpr, halves, bases, factors, size_R, HALVES: gl.constexpr):
    """The scores of 64 slots for the i-th four heads; nan where a size is nan."""
    if HALVES == 2:
        count = gl.inline_asm_elementwise(
            COUNTING_2, REGISTERS_2, [codes, more, held[2 * i], held[2 * i + 1]], gl.int32, True, 8
        )
    else:
        count = gl.inline_asm_elementwise(COUNTING, REGISTERS, [codes, held[i]], gl.int32, True, 8)
    # 2^-17 and the order of the rest: to the bit what `triton_codes` has
    scores = (count.to(gl.float32) * 7.62939453125e-06 - halves[i][None]) * factors[i][None]
    return scores * size_R[:, None] + bases[i][None]


@gluon.jit(do_not_specialize=["near", "pages", "G", "T", "blocks"])
def _maxima(q_pos, words, size, pos, filled, ready, after, planes, half, base, factor, best, state, asked, near,
            pages, G, T, blocks, PAGE: gl.constexpr, W: gl.constexpr, WP: gl.constexpr, R: gl.constexpr,
            NQ: gl.constexpr, TILES: gl.constexpr, HEADS: gl.constexpr, ASKED: gl.constexpr):  # fmt: skip
    """Some blocks of 64 slots of one row's group of heads: the best score of each."""
    HALVES: gl.constexpr = (W + 3) // 4
    SETS: gl.constexpr = (R + 3) // 4
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [1, 1], [1, 0])
    ROWS: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    g, first = gl.program_id(0) % G, gl.program_id(0) // G * (TILES * 64)
    b = gl.program_id(1).to(gl.int64)
    end = gl.load(filled + b)
    if ASKED:
        end *= gl.load(asked + g)
    if first >= end:
        return
    at = b * G + g
    row, column = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)), gl.arange(0, 4, gl.SliceLayout(0, LAYOUT))
    held, halves, bases, factors = _query(planes, half, base, factor, at, W, WP, R, NQ, LAYOUT)
    low, span = _seen(q_pos, ready, after, b, b, near)
    words_at, size_at, pos_at = _page(words, size, pos, b, g, pages, first, PAGE, W)
    room = gl.minimum(end - first, TILES * 64).to(gl.int32)
    pair = gl.arange(0, 64, ROWS)
    high_score, low_score = gl.to_tensor(float("-inf")), gl.to_tensor(float("inf"))
    # what lies behind the last slot is read, as a page is whole, and not seen
    codes, more = _codes(words_at, 0, row, column, W, HALVES)
    size, place, tiles = gl.load(size_at + pair), gl.load(pos_at + pair), gl.cdiv(room, 64)
    for tile in range(0, tiles):
        ahead = gl.minimum(tile + 1, tiles - 1) * 64  # is read while this one is scored
        next_codes, next_more = _codes(words_at, ahead, row, column, W, HALVES)
        next_size, next_place = gl.load((size_at + ahead) + pair), gl.load((pos_at + ahead) + pair)
        size_R = _sizes(size, place, tile * 64 + pair < room, low, span, LAYOUT)
        top = gl.full([4], float("-inf"), gl.float32, gl.SliceLayout(0, LAYOUT))
        least = gl.full([4], float("inf"), gl.float32, gl.SliceLayout(0, LAYOUT))
        for i in gl.static_range(SETS):
            scores = _scores(codes, more, held, i, halves, bases, factors, size_R, HALVES)
            top_C = gl.max(scores, 0)
            top_C = gl.where(top_C == top_C, top_C, float("-inf"))
            if HEADS:
                head = 4 * i + column
                gl.store(best + (b * T + g * R + head) * blocks + first // 64 + tile, top_C, head < R)
                least = gl.minimum(least, gl.where(top_C > float("-inf"), top_C, float("inf")))
            top = gl.maximum(top, top_C)
        most = gl.max(top, 0)
        if not HEADS:
            gl.store(best + (b * T + g) * blocks + first // 64 + tile, most)
        high_score = gl.maximum(high_score, most)
        fewest = gl.min(least, 0) if HEADS else gl.where(most > float("-inf"), most, float("inf"))
        low_score = gl.minimum(low_score, fewest)
        codes, more, size, place = next_codes, next_more, next_size, next_place
    for i in gl.static_range(R if HEADS else 1):  # one range serves all heads
        widen(state, b * T + (g * R + i if HEADS else g), high_score, low_score, True)


@gluon.jit
def _sum(one, other):
    return one + other


@gluon.jit(do_not_specialize=["near", "pages", "G", "L", "most"])
def _survivors(q_pos, words, size, pos, filled, ready, after, planes, half, base, factor, block, count, floor, found,
               score, slot, tally, near, pages, G, L, most, PAGE: gl.constexpr, W: gl.constexpr, WP: gl.constexpr,
               R: gl.constexpr, NQ: gl.constexpr, HEADS: gl.constexpr, ONE: gl.constexpr):  # fmt: skip
    """The tokens of two of these blocks that reach the bound, added to the row's, and counted in its bins."""
    HALVES: gl.constexpr = (W + 3) // 4
    SETS: gl.constexpr = (R + 3) // 4
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [1, 1], [1, 0])
    ROWS: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    table_of, start = gl.program_id(1), gl.program_id(0) * 2
    row_of = table_of.to(gl.int64)
    number = gl.load(count + row_of)
    if start >= number:
        return
    T = G * R if HEADS else G
    if ONE:
        L = 1
    # by numbers of 32 bits: others take ten times the instructions to divide
    b, table, l = (table_of // (T * L)).to(gl.int64), table_of // L % T, table_of % L
    g = table // R if HEADS else table
    at = (b * G + g) * L + l
    row, column = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)), gl.arange(0, 4, gl.SliceLayout(0, LAYOUT))
    pair = gl.arange(0, 64, ROWS)
    held, halves, bases, factors = _query(planes, half, base, factor, at, W, WP, R, NQ, LAYOUT)
    end, bound = gl.load(filled + b), gl.load(floor + row_of)
    low, span = _seen(q_pos, ready, after, b, b * L + l, near)
    tally += row_of * STATE
    least, highest = begun(tally)
    firsts, codes, mores, sizes, places = (), (), (), (), ()
    for j in gl.static_range(2):  # both are read before anything waits for it
        first = gl.load(block + row_of * most + gl.minimum(start + j, number - 1)).to(gl.int64) * 64
        words_at, size_at, pos_at = _page(words, size, pos, b, g, pages, first, PAGE, W)
        words_of, more = _codes(words_at, 0, row, column, W, HALVES)
        codes = codes + (words_of,)  # type: ignore[assignment]  # noqa: RUF005
        mores = mores + (more,)  # type: ignore[assignment]  # noqa: RUF005
        sizes = sizes + (gl.load(size_at + pair),)  # type: ignore[assignment]  # noqa: RUF005
        places = places + (gl.load(pos_at + pair),)  # type: ignore[assignment]  # noqa: RUF005
        firsts = firsts + (first,)  # type: ignore[assignment]  # noqa: RUF005
    for j in gl.static_range(2):
        seen = (firsts[j] + pair < end) & (start + j < number)
        seen = seen & ((places[j].to(gl.int32) - low).to(gl.uint32, bitcast=True) < span)
        size_R = gl.where(seen, sizes[j].to(gl.float32), float("nan"))
        size_R = gl.convert_layout(size_R, gl.SliceLayout(1, LAYOUT))
        best_R = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, LAYOUT))
        for i in gl.static_range(SETS):
            scores = _scores(codes[j], mores[j], held, i, halves, bases, factors, size_R, HALVES)
            if HEADS:
                scores = gl.where((4 * i + column == table % R)[None], scores, float("-inf"))
            best_R = gl.maximum(best_R, gl.max(scores, 1))
        best_R = gl.convert_layout(best_R, ROWS)
        take = (best_R >= bound) & (best_R > float("-inf"))  # -inf, or nan: not seen
        taken = take.to(gl.int32)
        before = gl.atomic_add(found + row_of, gl.sum(taken, 0), sem="relaxed")
        to = row_of * (most * 64) + before + gl.associative_scan(taken, 0, _sum) - 1
        gl.store(score + to, best_R, take)
        note(tally, best_R, least, highest, take)
        gl.store(slot + to, (firsts[j] + pair).to(gl.int32), take)
