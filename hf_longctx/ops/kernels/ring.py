"""Where the Triton kernels of a ring's token can be used, and a check of them on their first use."""

# B batch, G key/value heads, N columns, D head dim, V that of values
from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..available import by_triton
from ..checked import by_itself, checked_once, randoms

logger = logging.getLogger("hf_longctx")
DEVICES = ("cuda",)


def begins(pos_BN: Tensor) -> bool:
    """Can `triton_ring.begin` note a token among these positions?"""
    device = pos_BN.device
    return by_triton(pos_BN, DEVICES) and checked_once(begins, device, lambda: _check_begin(device)) is None


def writes(k_BG1D: Tensor, v_BG1D: Tensor, to_k_BGND: Tensor, to_v_BGND: Tensor) -> bool:
    """Can `triton_ring.write` put these keys and values there?"""
    held = k_BG1D, v_BG1D, to_k_BGND, to_v_BGND
    graph = torch.is_grad_enabled() and any(x.requires_grad for x in held)
    if not by_triton(to_k_BGND, DEVICES) or graph or any(x.stride(-1) != 1 for x in held[2:]):
        return False
    kind: Any = (to_k_BGND.device, *(x.dtype for x in held), k_BG1D.shape[-1], v_BG1D.shape[-1])
    return checked_once(writes, kind, lambda: _check_write(*kind)) is None


@by_itself
def _check_begin(device: torch.device) -> str | None:
    """What is wrong with the bookkeeping on this device; None if a token and one that waits are noted as they should.

    The second row's column is the last one, which has held position 7.
    """

    def whole(*rows: list[int]) -> Tensor:
        return torch.tensor(rows, device=device)

    new, pos, columns = whole([9], [-1]), whole([0, 1, 2], [5, 6, 7]), whole([0, 1, 2], [0, 1, 2])
    next_at, at, evicted, last = whole([0], [2]), whole([0], [0]), whole([-1, 3])[0], whole([4], [4])
    moved = torch.zeros_like(at)
    wanted = {
        "positions": whole([9, 1, 2], [5, 6, -1]), "columns": whole([5, 1, 2], [0, 1, 5]), "next": whole([1], [2]),
        "here": whole([0], [2]), "evicted": whole([0, 7])[0], "last": whole([5], [5]), "moved": whole([1], [0]),
    }  # fmt: skip
    try:
        from .triton_ring import begin

        begin(new, pos, columns, next_at, at, evicted, last, moved, False)
        got = pos, columns, next_at, at, evicted, last, moved
        wrong = [name for (name, x), mine in zip(wanted.items(), got, strict=True) if not torch.equal(x, mine)]
        reason = f"{', '.join(wrong)} are not those of torch" if wrong else None
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"its check raised {type(error).__name__}: {error}"
    return _told("for the bookkeeping of a window", reason)


@by_itself
def _check_write(
    device: torch.device, k: torch.dtype, v: torch.dtype, to_k: torch.dtype, to_v: torch.dtype, dim: int, v_dim: int
) -> str | None:
    """What is wrong with keys and values that are put into columns; None if they are there, and nothing else is."""
    sizes = ((k, to_k, dim), (v, to_v, v_dim))
    new = [randoms(device, one)(2, 3, 1, size) for one, _, size in sizes]
    buffers = [torch.zeros(2, 3, 4, size, dtype=there, device=device) for _, there, size in sizes]
    at = torch.tensor([[3], [1]], device=device)
    wanted = [
        buffer.scatter(2, at[:, :, None, None].expand_as(x), x.to(buffer.dtype))
        for x, buffer in zip(new, buffers, strict=True)
    ]
    try:
        from .triton_ring import write

        write(new[0], new[1], buffers[0], buffers[1], at)
        same = all(torch.equal(*pair) for pair in zip(buffers, wanted, strict=True))
        reason = None if same else "what it writes is not there"
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"its check raised {type(error).__name__}: {error}"
    return _told("that writes tokens into a window", reason)


def _told(what: str, reason: str | None) -> str | None:
    if reason is not None:
        logger.warning("the Triton kernel %s is not used, and tokens take longer: %s", what, reason)
    return reason
