"""Codes of keys on a GPU: by a kernel where it gives torch's bits, which is looked at on its first use."""

# G key/value heads, S keys, D head dim, T channels of the turn
from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..available import TRITON
from ..checked import checked_once, randoms
from ..codes import Centre, channels, encode

logger = logging.getLogger("hf_longctx")
DEVICES = ("cuda",)


def coded(k_GSD: Tensor, centre: Centre, into: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """`ops.codes.encode` of one row's keys, bit for bit, without gradients; `into`: where words and sizes are to go.

    Of these the numbers of a head must be dense.
    """
    kind = k_GSD.device, k_GSD.dtype, k_GSD.shape[-1]
    able = TRITON and k_GSD.device.type in DEVICES and not torch.compiler.is_compiling() and 0 not in k_GSD.shape
    if able and checked_once(coded, kind, lambda: _check(*kind)) is None:
        from .triton_coding import encode as by_kernel

        return by_kernel(k_GSD, centre, into)
    words, size = encode(k_GSD, centre)
    return (words, size) if into is None else (into[0].copy_(words), into[1].copy_(size))


@torch.no_grad()
def _check(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """Why the kernel cannot code such keys on this device; None if its codes are torch's, bit for bit."""
    T = channels(dim)
    if T & (T - 1) or T > 2048:
        return f"{T} channels are no power of two"
    k = 3.0 * randoms(device, dtype)(2, 700, dim)
    centre = Centre.of(k[:, :100])
    try:
        from .triton_coding import encode as by_kernel

        same = [torch.equal(*pair) for pair in zip(by_kernel(k, centre), encode(k, centre), strict=True)]
        reason = None if all(same) else "its codes are not torch's"
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"its check raised {type(error).__name__}: {error}"
    if reason is not None:
        logger.warning("the Triton kernel for codes is not used, and reading takes longer: %s", reason)
    return reason
