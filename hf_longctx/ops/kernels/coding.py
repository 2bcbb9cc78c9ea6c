"""Codes of keys on a GPU, and keys put into pages: by kernels where they give torch's bits, checked on first use."""

# G key/value heads, S keys, D head dim of keys, V of values, T channels of the turn
from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..available import by_triton
from ..checked import by_itself, checked_once, randoms
from ..codes import Centre, channels, encode
from ..host import sent
from ..pages import ALIGNED

logger = logging.getLogger("hf_longctx")
DEVICES = ("cuda",)


def able(k_GSD: Tensor) -> bool:
    """Are there kernels for such keys, as far as is known without a check?"""
    return by_triton(k_GSD, DEVICES)


def coded(k_GSD: Tensor, centre: Centre, into: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """`ops.codes.encode` of one row's keys, bit for bit, without gradients; `into`: where words and sizes are to go.

    Of these the numbers of a head must be dense.
    """
    kind = k_GSD.device, k_GSD.dtype, k_GSD.shape[-1]
    if able(k_GSD) and checked_once(coded, kind, lambda: _check(*kind)) is None:
        from .triton_coding import encode as by_kernel

        return by_kernel(k_GSD, centre, into)
    words, size = encode(k_GSD, centre)
    return (words, size) if into is None else (into[0].copy_(words), into[1].copy_(size))


def stored(
    k_GSD: Tensor,
    v_GSD: Tensor,
    pages: Sequence[Sequence[Tensor]],
    start: int,
    centre: Centre | None,
    kept: bool = True,
) -> bool:
    """Put keys, values and codes of one row into pages in one launch. False, and nothing has happened, if none can.

    Args:
        k_GSD: New keys.
        v_GSD: New values.
        pages: Of keys and of values, and if there is a centre of words and of sizes, as many of each: (G, page, ...).
        start: The slot of the first key, counted from the first of these pages on.
        centre: What codes are relative to; None: there are none.
        kept: Are keys and values put there, or codes alone?
    """
    if not able(k_GSD):
        return False
    if kept and (k_GSD.dtype, v_GSD.dtype) != (pages[0][0].dtype, pages[1][0].dtype):
        return False
    at = [[page.data_ptr() for page in some] for some in pages]
    if kept and any(address % ALIGNED for some in at for address in some):
        return False
    kind = k_GSD.device, k_GSD.dtype, k_GSD.shape[-1], v_GSD.shape[-1], centre is not None, kept
    if checked_once(stored, kind, lambda: _check_stored(*kind)) is not None:
        return False
    from .triton_coding import store

    store(k_GSD, v_GSD, sent(torch.tensor(at, device="cpu"), k_GSD.device), start, pages[-1][0].shape[1], centre, kept)
    return True


def _not_turned(dim: int) -> str | None:
    """Why kernels cannot turn keys of so many channels; None if they can."""
    T = channels(dim)
    return f"{T} channels are no power of two" if T & (T - 1) or T > 2048 else None


@by_itself
def _check_stored(
    device: torch.device, dtype: torch.dtype, dim: int, v_dim: int, coded: bool, kept: bool = True
) -> str | None:
    """Why the kernel cannot put such keys into pages; None if pages then hold what torch puts there, bit for bit."""
    if coded and (reason := _not_turned(dim)) is not None:
        return reason
    page, start, count = 64, 5, 150
    random = randoms(device, dtype)
    k, v = 3.0 * random(2, count, dim), random(2, count, v_dim)
    centre = Centre.of(k[:, :50]) if coded else None
    new = [k, v, *(() if centre is None else encode(k, centre))]
    pages = [[torch.zeros(2, page, *x.shape[2:], dtype=x.dtype, device=device) for _ in range(3)] for x in new]
    try:
        from .triton_coding import store

        at = torch.tensor([[each.data_ptr() for each in some] for some in pages], device=device)
        store(k, v, at, start, page, centre, kept)
        held = new if kept else [torch.zeros_like(k), torch.zeros_like(v), *new[2:]]
        wrong = [
            not torch.equal(torch.cat(some, 1), torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (start, 37)))
            for x, some in zip(held, pages, strict=True)
        ]
        reason = "pages do not hold what torch puts there" if any(wrong) else None
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"its check raised {type(error).__name__}: {error}"
    if reason is not None:
        logger.warning("the Triton kernel that puts keys into pages is not used, and reading takes longer: %s", reason)
    return reason


@by_itself
def _check(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """Why the kernel cannot code such keys on this device; None if its codes are torch's, bit for bit."""
    if (reason := _not_turned(dim)) is not None:
        return reason
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
