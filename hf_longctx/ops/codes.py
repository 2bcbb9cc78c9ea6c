"""Keys as codes of one bit a channel, or two: a fixed turn, a mean, a width per channel, a size per key.

A key k of a head becomes the signs of r = turn(k - mean) / width and the mean of |r|, its size. The score of a query is
then q mean + size * w signs, where w is turn(q) * width in whole steps, numbers of six bits. It differs from q k by at
most |w| |r - size signs| + |turn(q) * width - w| |r|. The idea and the first bound are RaBitQ's (Gao and Long 2024,
https://arxiv.org/abs/2405.12497), whose queries have four bits. Every step of coding is done element by element in one
order, so a key's code does not depend on the keys that are coded with it.

A code is worse the fewer channels it has. Of heads of up to `FEW` channels each has a second bit: whether |r| is at
least its mean, as a sign with half the weight. A channel then has one of four values, -1.5, -0.5, 0.5 and 1.5 times the
size, near those by which normal numbers are told best (Max 1960). A code of T channels is so one of 2 T, of a query
(w, w / 2).
Of SmolLM2's best 5 of 32,000 keys such codes have 77 % among their best 32, and codes of one bit 49 %
(recipes/benchmarks/code_bits.py).
"""

# G key/value heads, R query heads of a group, L queries, S keys, D head dim, T channels of the turn: D up to a multiple
# of 32, C channels of a code: T, or 2 T, W = C / 32 words
from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BITS = 32  # of a word
QUERY_BITS = 6  # of a query's channel, so that it is a sum of products of bits
SPREAD = 3.0  # of a query's channels at most, in standard deviations of a turned vector's
FEW = 64  # channels of the turn up to which each has two bits
LEAST = 1e-3  # of the heads' mean width: a channel that hardly varied at first may vary later


class Centre(NamedTuple):
    """What the codes of one row go by: the mean key of each head, (G, D), and the width of its channels, (G, C)."""

    mean_GD: Tensor
    width_GC: Tensor

    @classmethod
    def of(cls, k_GND: Tensor) -> Centre:
        """That of a row's first keys, in fp32."""
        keys = k_GND.float()
        mean = keys.mean(1)
        width = turned(keys - mean[:, None]).square().mean(1).sqrt()
        least = LEAST * width.mean(-1, keepdim=True)
        width = torch.where(least > 0, torch.maximum(width, least), 1.0)  # equal keys have no width
        return cls(mean, torch.cat([width * 0.5**level for level in range(levels(k_GND.shape[-1]))], -1))


def encode(k_GSD: Tensor, centre: Centre) -> tuple[Tensor, Tensor]:
    """The codes of keys: signs as int32 words (G, S, W), channel c in bit c % 32, and sizes (G, S) in fp16.

    All may have rows of a batch before G, each with a centre of its own.
    """
    T = channels(k_GSD.shape[-1])
    r_GST = turned(k_GSD.float() - centre.mean_GD[..., None, :]) / centre.width_GC[..., None, :T]
    bits, absolute = r_GST >= 0, r_GST.abs()
    total_GS = _sum(absolute)
    # not divided: on a GPU torch would multiply by the reciprocal, and on a CPU not
    size_GS = total_GS * (1.0 / T)
    if centre.width_GC.shape[-1] > T:
        large = absolute >= size_GS[..., None]
        bits = torch.cat([bits, bits == large], -1)
        # the size by which the four values are nearest to r
        along_GS = total_GS * 0.5 + _sum(torch.where(large, absolute, 0.0))
        size_GS = along_GS / (0.25 * T + 2.0 * large.sum(-1))
    words = (bits.unflatten(-1, (-1, BITS)).long() << torch.arange(BITS, device=bits.device)).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words)
    return words.int(), size_GS.clamp(max=torch.finfo(torch.float16).max).half()


def score(q_GRLD: Tensor, words_GSW: Tensor, size_GS: Tensor, centre: Centre) -> Tensor:
    """What q k is by the codes, (G, R, L, S) in fp32, also under autocast."""
    with torch.autocast(q_GRLD.device.type, enabled=False):
        return _score(q_GRLD, words_GSW, size_GS, centre)


def _score(q_GRLD: Tensor, words_GSW: Tensor, size_GS: Tensor, centre: Centre) -> Tensor:
    q_GND, (R, L) = q_GRLD.float().flatten(1, 2), q_GRLD.shape[1:3]
    whole_GNC, step_GN1 = in_steps(turned(q_GND), centre.width_GC)
    by_mean_GN1 = q_GND @ centre.mean_GD[..., None]
    shifts = torch.arange(BITS, device=words_GSW.device, dtype=torch.int32)
    bits_GSC = ((words_GSW[..., None] >> shifts) & 1).flatten(-2).to(q_GND.dtype)
    if bits_GSC.shape[-1] > R * L:  # less is done once for each score than once for each channel of a key
        signed = 2 * (whole_GNC @ bits_GSC.mT) - whole_GNC.sum(-1, keepdim=True)
        return (signed * step_GN1 * size_GS.float()[:, None] + by_mean_GN1).unflatten(1, (R, L))
    sized_GSC = bits_GSC.mul_(2).sub_(1).mul_(size_GS.float()[..., None])
    both = torch.cat([whole_GNC * step_GN1, by_mean_GN1], -1) @ pad(sized_GSC, (0, 1), value=1.0).mT
    return both.unflatten(1, (R, L))


def in_steps(turned_GNT: Tensor, width_GC: Tensor) -> tuple[Tensor, Tensor]:
    """Turned queries times the widths as whole numbers (G, N, C) of `QUERY_BITS`, and the size of a step, (G, N, 1)."""
    most, T = 2.0 ** (QUERY_BITS - 1), turned_GNT.shape[-1]
    norm = turned_GNT.square().sum(-1, keepdim=True).sqrt() * width_GC.amax(-1)[:, None, None]
    step = norm * step_share(T)
    step = torch.where(step > 0, step, 1.0)
    each_GNC = torch.cat([turned_GNT] * (width_GC.shape[-1] // T), -1)
    return (each_GNC * width_GC[:, None] / step).round().clamp(-most, most - 1), step


def step_share(T: int) -> float:
    """The size of a step over the norm of the turned query times the largest width."""
    return SPREAD / (2.0 ** (QUERY_BITS - 1) - 1) * _mixed(T) ** -0.5


def channels(dim: int) -> int:
    """Of the turn of a key of `dim` numbers."""
    return -(-dim // BITS) * BITS


def levels(dim: int) -> int:
    """Bits of each of these channels."""
    return 2 if channels(dim) <= FEW else 1


def code_channels(dim: int) -> int:
    """Bits of the code of a key of `dim` numbers."""
    return channels(dim) * levels(dim)


def turned(x: Tensor) -> Tensor:
    """(..., T): vectors (..., D) by a fixed orthogonal map: signs, Hadamard, another order, signs, Hadamard."""
    T = channels(x.shape[-1])
    x = pad(x, (0, T - x.shape[-1]))
    first, order, second = turns(T, x.device)
    return _hadamard(_hadamard(x * first)[..., order] * second)


@functools.lru_cache(maxsize=32)
def turns(T: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The signs, order and other signs of `turned`. Seeded by T alone: all models and versions have the same."""
    seeded = torch.Generator("cpu").manual_seed(T)
    first, second = (2.0 * torch.randint(2, (T,), generator=seeded, device="cpu") - 1 for _ in range(2))
    order = torch.randperm(T, generator=seeded, device="cpu")
    return first.to(device), order.to(device), second.to(device)


def _mixed(T: int) -> int:
    """How many channels are mixed with each other: the largest power of two that divides their number."""
    return T & -T


def _hadamard(x: Tensor) -> Tensor:
    """Sums and differences, within runs of the largest power of two that divides the number of channels."""
    run, half = _mixed(x.shape[-1]), 1
    while half < run:
        low, high = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.stack([low + high, low - high], -2).flatten(-3)
        half *= 2
    return x * run**-0.5


def _sum(x: Tensor) -> Tensor:
    """The sum over the last dim in one order, whatever the others are."""
    while x.shape[-1] > 1:
        odd, even = x[..., : x.shape[-1] % 2], x[..., x.shape[-1] % 2 :]
        low, high = even.chunk(2, -1)
        x = torch.cat([odd, low + high], -1)
    return x[..., 0]
