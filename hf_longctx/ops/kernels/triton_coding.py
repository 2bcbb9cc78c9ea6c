"""Codes of very many keys in Triton, in one launch: `codes.encode`, number by number, of which torch makes seventy."""

# mypy: disable-error-code="no-untyped-def"
# G key/value heads, S keys, D head dim, C channels of a code: a power of two, W = C / 32 words
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..codes import Centre, turns
from .placed import on_device_of
from .triton_pages import _hadamard

ELEMENTS = 2048  # numbers of the keys of a program


@triton.jit
def _mean(x, N: tl.constexpr, C: tl.constexpr, STEPS: tl.constexpr):
    """Of N runs of C numbers: halves added to each other, as in `codes.encode`."""
    x = tl.reshape(x, (N, C))
    for step in tl.static_range(STEPS):
        x = tl.sum(tl.reshape(x, (N, 2, C // 2 ** (step + 1))), 1)  # of two numbers, so in torch's order
    return tl.reshape(x, (N,)) * (1.0 / C)  # a division would be an approximate one


@triton.jit
def _code(k, mean, width, first, order, second, words, size, factor, keys, k_g, k_s, words_g, size_g, D: tl.constexpr,
          C: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """The codes of N keys of a head."""
    head, channel = tl.program_id(1).to(tl.int64), tl.arange(0, C)
    slot = tl.program_id(0) * N + tl.arange(0, N)
    live = slot < keys
    from_k = k + head * k_g + slot.to(tl.int64)[:, None] * k_s + channel[None]
    x = tl.load(from_k, live[:, None] & (channel < D)[None], 0.0).to(tl.float32)
    x -= tl.load(mean + head * D + channel, channel < D, 0.0)[None]
    x = tl.reshape(x * tl.load(first + channel)[None], (N * C,))
    x = tl.reshape(_hadamard(x, N * C, STEPS) * factor, (N, C))
    from_order = tl.broadcast_to(tl.load(order + channel).to(tl.int32)[None], (N, C))
    x = tl.reshape(tl.gather(x, from_order, 1) * tl.load(second + channel)[None], (N * C,))
    x = tl.reshape(_hadamard(x, N * C, STEPS) * factor, (N, C))
    x = tl.math.div_rn(x, tl.broadcast_to(tl.load(width + head * C + channel)[None], (N, C)))
    bits = tl.reshape((x >= 0).to(tl.int32) << (channel % 32)[None], (N * C // 32, 32))
    at, word = head * words_g + tl.program_id(0) * N * (C // 32), tl.arange(0, N * C // 32)
    tl.store(words + at + word, tl.sum(bits, 1), tl.program_id(0) * N + word // (C // 32) < keys)
    sizes = tl.minimum(_mean(tl.reshape(tl.abs(x), (N * C,)), N, C, STEPS), 65504.0)
    tl.store(size + head * size_g + slot, sizes.to(tl.float16), live)


def encode(k_GSD: Tensor, centre: Centre, into: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """`codes.encode` of one row, for C a power of two; `into`: where words and sizes go, dense but for the heads."""
    G, S, D = k_GSD.shape
    C = centre.width_GC.shape[-1]
    k = k_GSD if k_GSD.stride(-1) == 1 else k_GSD.contiguous()
    mean, width = (x.contiguous() for x in centre)
    if into is None:
        words = torch.empty(G, S, C // 32, dtype=torch.int32, device=k.device)
        into = words, torch.empty(G, S, dtype=torch.float16, device=k.device)
    words, size = into
    N = max(ELEMENTS // C, 1)
    grid: Any = (triton.cdiv(S, N), G)
    with on_device_of(k):
        _code[grid](
            k, mean, width, *turns(C, k.device), words, size, C**-0.5, S, *k.stride()[:2], words.stride(0),
            size.stride(0), D=D, C=C, STEPS=C.bit_length() - 1, N=N,
        )  # fmt: skip
    return words, size
