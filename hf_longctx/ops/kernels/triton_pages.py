"""The pages of a store, in Triton: one token kept by counters on the device, tokens gathered by address."""

# mypy: disable-error-code="no-untyped-def"
# B rows, N pages of a row at most, G key/value heads, L queries, K slots, D head dim, T channels of the turn, or tables
# of a row, C channels of a code
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import pages as sizes
from ..codes import Centre, channels, encode, turns
from ..pages import Pages
from .placed import on_device_of
from .triton_ring import put

ROWS = 32  # keys that a program gathers


@triton.jit
def _pairs(x, C: tl.constexpr, HALF: tl.constexpr):
    """Those who are HALF apart in runs of twice as many: the first ones and the second ones, (runs, HALF)."""
    return tl.split(tl.permute(tl.reshape(x, (C // (2 * HALF), 2, HALF)), (0, 2, 1)))


@triton.jit
def _hadamard(x, C: tl.constexpr, STEPS: tl.constexpr):
    """Sums and differences in the order of `codes.turned`, without its factor."""
    for step in tl.static_range(STEPS):
        low, high = _pairs(x, C, 2**step)
        x = tl.reshape(tl.permute(tl.join(low + high, low - high), (0, 2, 1)), (C,))
    return x


@triton.jit
def _sum(x, T: tl.constexpr, STEPS: tl.constexpr):
    """Halves added to each other, as in `codes.encode`."""
    for step in tl.static_range(STEPS):
        low, high = _pairs(x, T // 2**step, T // 2 ** (step + 1))
        x = low + high
    return tl.sum(tl.reshape(x, (1,)), 0)


@triton.jit
def _keep(k, v, pos, column, k_at, v_at, words_at, size_at, pos_at, column_at, words_new, size_new, filled, mean, width,
          first, order, second, arrived, ring_k, ring_v, ring_at, factor, entries, k_b, k_g, v_b, v_g, pos_b, column_b,
          rk_b, rk_g, rk_n, rv_b, rv_g, rv_n,
          D: tl.constexpr, DP: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
          STEPS: tl.constexpr, WP: tl.constexpr, PAGE: tl.constexpr, CODES: tl.constexpr,
          RING: tl.constexpr):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    if RING:  # a row that waits too
        to = tl.load(ring_at + row)
        put(k, ring_k, k_b, k_g, rk_b, rk_g, rk_n, row, head, to, D, DP)
        put(v, ring_v, v_b, v_g, rv_b, rv_g, rv_n, row, head, to, V, VP)
    at_pos = tl.load(pos + row * pos_b)
    if at_pos >= 0:
        number = tl.load(filled + row)
        entry, slot = row * entries + number // PAGE, number % PAGE
        dim, v_dim = tl.arange(0, DP), tl.arange(0, VP)
        to_k = tl.multiple_of(tl.load(k_at + entry).to(tl.pointer_type(k.dtype.element_ty)), 16)
        to_v = tl.multiple_of(tl.load(v_at + entry).to(tl.pointer_type(v.dtype.element_ty)), 16)
        to_k, to_v = to_k + (head * PAGE + slot) * D, to_v + (head * PAGE + slot) * V
        k += row * k_b + head * k_g
        tl.store(to_k + dim, tl.load(k + dim, dim < D), dim < D)
        tl.store(to_v + v_dim, tl.load(v + row * v_b + head * v_g + v_dim, v_dim < V), v_dim < V)
        if CODES != "none":
            word, both = tl.arange(0, WP), row * heads + head
            to_words = tl.load(words_at + entry).to(tl.pointer_type(tl.int32)) + (head * PAGE + slot) * (C // 32)
            to_size = tl.load(size_at + entry).to(tl.pointer_type(tl.float16)) + head * PAGE + slot
        if CODES == "made":
            channel, word = tl.arange(0, T), tl.arange(0, T // 32)
            x = tl.load(k + channel, channel < D, 0.0).to(tl.float32)
            x -= tl.load(mean + both * D + channel, channel < D, 0.0)
            x = _hadamard(x * tl.load(first + channel), T, STEPS) * factor
            x = tl.gather(x, tl.load(order + channel).to(tl.int32), 0) * tl.load(second + channel)
            x = tl.math.div_rn(_hadamard(x, T, STEPS) * factor, tl.load(width + both * C + channel))
            bits = tl.reshape((x >= 0).to(tl.int32) << (channel % 32), (T // 32, 32))
            tl.store(to_words + word, tl.sum(bits, 1))
            absolute = tl.abs(x)
            total = _sum(absolute, T, STEPS)
            made = total * (1.0 / T)  # a division would be an approximate one
            if C > T:
                large = absolute >= made
                bits = tl.reshape(((x >= 0) == large).to(tl.int32) << (channel % 32), (T // 32, 32))
                tl.store(to_words + T // 32 + word, tl.sum(bits, 1))
                along = total * 0.5 + _sum(tl.where(large, absolute, 0.0), T, STEPS)
                made = tl.math.div_rn(along, 0.25 * T + 2.0 * tl.sum(large.to(tl.int32), 0).to(tl.float32))
            tl.store(to_size, tl.minimum(made, 65504.0).to(tl.float16))
        elif CODES == "given":
            words = tl.load(words_new + both * (C // 32) + word, word < C // 32)
            tl.store(to_words + word, words, word < C // 32)
            tl.store(to_size, tl.load(size_new + both))
        if head == 0:
            tl.store(tl.load(pos_at + entry).to(tl.pointer_type(tl.int64)) + slot, at_pos)
            tl.store(tl.load(column_at + entry).to(tl.pointer_type(tl.int64)) + slot, tl.load(column + row * column_b))
        tl.debug_barrier()  # the head that comes last counts the token: all have read by then where it goes
        if tl.atomic_add(arrived + row, 1) == heads - 1:
            tl.store(arrived + row, 0)
            tl.store(filled + row, number + 1)


def keep(
    pages: Pages, column_BN: Tensor, k_BG1D: Tensor, v_BG1D: Tensor, pos_B1: Tensor, column_B1: Tensor,
    arrived_B: Tensor, window: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write one token of every row whose position is not negative into its slot `filled_B`, and count it there.

    Args:
        pages: With room for it. Rows are coded by their own mean and width.
        column_BN: Addresses of pages of columns, as those of positions.
        k_BG1D: Keys.
        v_BG1D: Values.
        pos_B1: Positions.
        column_B1: Where in the text the token was read; or (1, 1).
        arrived_B: Zeros, int32, which they are again afterwards.
        window: A ring's keys and values (B, G, N, D) of the same dtype, and the columns (B, 1) that every row's go to,
            those of rows at negative positions too.
    """
    B, G, _, D = k_BG1D.shape
    V, C = v_BG1D.shape[-1], pages.width_BGC.shape[-1]
    k, v = (x.to(pages.dtype).contiguous() for x in (k_BG1D, v_BG1D))
    T = channels(D) if C else 0
    first, order, second = turns(T, k.device) if C else (k, k, k)
    codes, words, size = "made" if C else "none", k, k
    if T & (T - 1):  # torch codes them, in many more kernels
        codes, (words, size) = "given", encode(k, Centre(pages.mean_BGD, pages.width_BGC))
    pos, column = pos_B1.expand(B, 1), column_B1.expand(B, 1)
    ring_k, ring_v, ring_at = (k, v, pos) if window is None else window
    dims = {"DP": triton.next_power_of_2(D), "VP": triton.next_power_of_2(V), "C": C, "T": T}
    dims["STEPS"] = max(T.bit_length() - 1, 0)
    dims["WP"] = triton.next_power_of_2(max(C // 32, 1))
    with on_device_of(k):
        _keep[(B, G)](
            k, v, pos, column, pages.k, pages.v, pages.words, pages.size, pages.pos, column_BN, words, size,
            pages.filled_B, pages.mean_BGD, pages.width_BGC, first, order, second, arrived_B, ring_k, ring_v, ring_at,
            max(T, 1) ** -0.5, pages.k.shape[1], k.stride(0), k.stride(1), v.stride(0), v.stride(1), pos.stride(0),
            column.stride(0), *ring_k.stride()[:3], *ring_v.stride()[:3],
            D=D, V=V, **dims, PAGE=sizes.PAGE, CODES=codes, RING=window is not None, num_warps=1,
        )  # fmt: skip


@triton.jit
def _gather(table, at, out, entries, tables, group, each, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr,
            PAGE: tl.constexpr):  # fmt: skip
    number, both = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1).to(tl.int64)
    row, head, dim = both // tables, (both % tables) // group, tl.arange(0, DP)
    slot = tl.load(table + both * each + number, number < each, -1)
    live = slot >= 0
    page = tl.load(at + row * entries + slot // PAGE, live, 0).to(tl.pointer_type(out.dtype.element_ty))
    place, mask = (head * PAGE + slot % PAGE) * D, live[:, None] & (dim < D)[None]
    x = tl.load(tl.multiple_of(page, 16)[:, None] + place[:, None] + dim[None], mask, 0.0)
    tl.store(out + (both * each + number)[:, None] * D + dim[None], x, (number < each)[:, None] & (dim < D)[None])


def gather(at_BN: Tensor, table_BTLK: Tensor, heads: int, dim: int, dtype: torch.dtype) -> Tensor:
    """The keys or values of a table's slots, (B, T, L, K, D); zeros for slots below 0.

    Args:
        at_BN: Addresses of their pages, (heads, PAGE, dim) each, as in `Pages`; pinned host memory is read too.
        table_BTLK: Of int64; T is a multiple of heads.
        heads: G.
        dim: D.
        dtype: Of the pages.
    """
    B, T, L, K = table_BTLK.shape
    table = table_BTLK.contiguous()
    out = torch.empty(*table.shape, dim, dtype=dtype, device=table.device)
    grid: Any = (triton.cdiv(L * K, ROWS), B * T)
    with on_device_of(out):
        _gather[grid](
            table, at_BN, out, at_BN.stride(0), T, T // heads, L * K,
            D=dim, DP=triton.next_power_of_2(dim), ROWS=ROWS, PAGE=sizes.PAGE,
        )  # fmt: skip
    return out
