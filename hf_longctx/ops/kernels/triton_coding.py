"""Codes of very many keys in Triton, in one launch: `codes.encode`, number by number, of which torch makes seventy."""

# mypy: disable-error-code="no-untyped-def"
# G key/value heads, S keys, D head dim, T channels of the turn: a power of two, each of LEVELS bits of a code
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..codes import Centre, channels, turns
from .placed import on_device_of
from .triton_pages import _hadamard

# numbers of the keys of a program, and its warps: of several, each step of a turn would exchange them through shared
# memory, behind a barrier (4 warps with 2,048 numbers: 52 barriers in place of 6, and two thirds more instructions)
ELEMENTS, WARPS = 1024, 1


@triton.jit
def _sum(x, N: tl.constexpr, T: tl.constexpr, STEPS: tl.constexpr):
    """Of N runs of T numbers: halves added to each other, as in `codes.encode`."""
    x = tl.reshape(x, (N, T))
    for step in tl.static_range(STEPS):
        x = tl.sum(tl.reshape(x, (N, 2, T // 2 ** (step + 1))), 1)  # of two numbers, so in torch's order
    return tl.reshape(x, (N,))


@triton.jit
def _codes_of(x, mean, width, first, order, second, head, factor, D: tl.constexpr, T: tl.constexpr,
              STEPS: tl.constexpr, N: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """Of N keys (N, T) of a head in fp32: words of signs, words of what is large (or signs again), sizes."""
    channel = tl.arange(0, T)
    x -= tl.load(mean + head * D + channel, channel < D, 0.0)[None]
    x = tl.reshape(x * tl.load(first + channel)[None], (N * T,))
    x = tl.reshape(_hadamard(x, N * T, STEPS) * factor, (N, T))
    from_order = tl.broadcast_to(tl.load(order + channel).to(tl.int32)[None], (N, T))
    x = tl.reshape(tl.gather(x, from_order, 1) * tl.load(second + channel)[None], (N * T,))
    x = tl.reshape(_hadamard(x, N * T, STEPS) * factor, (N, T))
    x = tl.math.div_rn(x, tl.broadcast_to(tl.load(width + head * (LEVELS * T) + channel)[None], (N, T)))
    absolute = tl.abs(x)
    total = _sum(tl.reshape(absolute, (N * T,)), N, T, STEPS)
    sizes = total * (1.0 / T)  # a division would be an approximate one
    bits = tl.reshape((x >= 0).to(tl.int32) << (channel % 32)[None], (N * T // 32, 32))
    signs = tl.sum(bits, 1)
    larger = signs
    if LEVELS == 2:
        large = absolute >= sizes[:, None]
        bits = tl.reshape(((x >= 0) == large).to(tl.int32) << (channel % 32)[None], (N * T // 32, 32))
        larger = tl.sum(bits, 1)
        along = total * 0.5 + _sum(tl.reshape(tl.where(large, absolute, 0.0), (N * T,)), N, T, STEPS)
        sizes = tl.math.div_rn(along, 0.25 * T + 2.0 * tl.sum(large.to(tl.int32), 1).to(tl.float32))
    return signs, larger, tl.minimum(sizes, 65504.0).to(tl.float16)


@triton.jit
def _code(k, mean, width, first, order, second, words, size, factor, keys, k_g, k_s, words_g, size_g, D: tl.constexpr,
          T: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """The codes of N keys of a head."""
    head, channel = tl.program_id(1).to(tl.int64), tl.arange(0, T)
    slot = tl.program_id(0) * N + tl.arange(0, N)
    live = slot < keys
    from_k = k + head * k_g + slot.to(tl.int64)[:, None] * k_s + channel[None]
    x = tl.load(from_k, live[:, None] & (channel < D)[None], 0.0).to(tl.float32)
    signs, larger, sizes = _codes_of(x, mean, width, first, order, second, head, factor, D, T, STEPS, N, LEVELS)
    word = tl.arange(0, N * T // 32)
    slot_of, word_of = tl.program_id(0) * N + word // (T // 32), word % (T // 32)
    to = words + head * words_g + slot_of.to(tl.int64) * (LEVELS * T // 32) + word_of
    tl.store(to, signs, slot_of < keys)
    if LEVELS == 2:
        tl.store(to + T // 32, larger, slot_of < keys)
    tl.store(size + head * size_g + slot, sizes, live)


@triton.jit(do_not_specialize=["keys", "start", "entries"])
def _store(k, v, at, mean, width, first, order, second, factor, keys, start, entries, k_g, k_s, v_g, v_s,
           D: tl.constexpr, T: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr,
           LEVELS: tl.constexpr, PAGE: tl.constexpr, KEPT: tl.constexpr):  # fmt: skip
    """N keys of a head, their values and their codes, put into pages; only the codes unless KEPT.

    `at` has the addresses of their pages: of keys, of values, of words and of sizes, `entries` each.
    """
    head, channel = tl.program_id(1).to(tl.int64), tl.arange(0, T)
    number = tl.program_id(0) * N + tl.arange(0, N)
    live, slot = number < keys, start + number
    entry, row = slot // PAGE, head * PAGE + slot % PAGE
    mask = live[:, None] & (channel < D)[None]
    key_NT = tl.load(k + head * k_g + number.to(tl.int64)[:, None] * k_s + channel[None], mask, 0.0)
    if KEPT:
        dim = tl.arange(0, VP)
        to = tl.load(at + entry, live, 0).to(tl.pointer_type(k.dtype.element_ty))
        tl.store(tl.multiple_of(to, 16)[:, None] + row[:, None] * D + channel[None], key_NT, mask)
        mask = live[:, None] & (dim < V)[None]
        value_NV = tl.load(v + head * v_g + number.to(tl.int64)[:, None] * v_s + dim[None], mask, 0.0)
        to = tl.load(at + entries + entry, live, 0).to(tl.pointer_type(v.dtype.element_ty))
        tl.store(tl.multiple_of(to, 16)[:, None] + row[:, None] * V + dim[None], value_NV, mask)
    if LEVELS:
        x = key_NT.to(tl.float32)
        signs, larger, sizes = _codes_of(x, mean, width, first, order, second, head, factor, D, T, STEPS, N, LEVELS)
        word = tl.arange(0, N * T // 32)
        number_of, word_of = tl.program_id(0) * N + word // (T // 32), word % (T // 32)
        live_of, slot_of = number_of < keys, start + number_of
        to = tl.load(at + 2 * entries + slot_of // PAGE, live_of, 0).to(tl.pointer_type(tl.int32))
        to = to + (head * PAGE + slot_of % PAGE) * (LEVELS * T // 32) + word_of
        tl.store(to, signs, live_of)
        if LEVELS == 2:
            tl.store(to + T // 32, larger, live_of)
        to = tl.load(at + 3 * entries + entry, live, 0).to(tl.pointer_type(tl.float16))
        tl.store(to + row, sizes, live)


def encode(k_GSD: Tensor, centre: Centre, into: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """`codes.encode` of one row, for T a power of two; `into`: where words and sizes go, dense but for the heads."""
    G, S, D = k_GSD.shape
    C, T = centre.width_GC.shape[-1], channels(D)
    k = k_GSD if k_GSD.stride(-1) == 1 else k_GSD.contiguous()
    mean, width = (x.contiguous() for x in centre)
    if into is None:
        words = torch.empty(G, S, C // 32, dtype=torch.int32, device=k.device)
        into = words, torch.empty(G, S, dtype=torch.float16, device=k.device)
    words, size = into
    N = max(ELEMENTS // T, 1)
    grid: Any = (triton.cdiv(S, N), G)
    with on_device_of(k):
        _code[grid](
            k, mean, width, *turns(T, k.device), words, size, T**-0.5, S, *k.stride()[:2], words.stride(0),
            size.stride(0), D=D, T=T, STEPS=T.bit_length() - 1, N=N, LEVELS=C // T,
            num_warps=WARPS,
        )  # fmt: skip
    return words, size


def store(
    k_GSD: Tensor, v_GSD: Tensor, at_4N: Tensor, start: int, page: int, centre: Centre | None, kept: bool = True
) -> None:
    """Write keys, values and codes of one row into its pages.

    Args:
        k_GSD: Keys, of the dtype of their pages.
        v_GSD: Values, likewise.
        at_4N: Addresses of pages (G, page, ...): of keys, of values, of words and of sizes.
        start: The slot of the first key, counted from the first of these pages on.
        page: Slots of a page.
        centre: What codes are relative to; its channels, for which T is a power of two. None: there are no codes.
        kept: Are keys and values written, or their codes alone?
    """
    G, S, D = k_GSD.shape
    C, V = 0 if centre is None else centre.width_GC.shape[-1], v_GSD.shape[-1]
    T = channels(D) if C else triton.next_power_of_2(D)
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k_GSD, v_GSD))
    mean, width = (k, k) if centre is None else (x.contiguous() for x in centre)
    turn = turns(T, k.device) if C else (k, k, k)
    N = max(ELEMENTS // T, 1)
    with on_device_of(k):
        _store[(triton.cdiv(S, N), G)](
            k, v, at_4N, mean, width, *turn, T**-0.5, S, start, at_4N.shape[1], *k.stride()[:2], *v.stride()[:2],
            D=D, T=T, V=V, VP=triton.next_power_of_2(V), STEPS=T.bit_length() - 1, N=N, LEVELS=C // T, PAGE=page,
            KEPT=kept, num_warps=WARPS,
        )  # fmt: skip
