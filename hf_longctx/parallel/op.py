"""`attention`: a rank's part of attention, as one operator of torch.

Its outputs are the merged output and log-sum-exp. Selective checkpointing can keep both, so that recomputation repeats
neither attention nor exchanges. Its name contains "flash_attn", by which TRL's checkpointing finds what it keeps. Where
neither torch.compile nor such a mode looks at operators, its functions are called without one.
"""

# H query heads, G key/value heads, L rows of a rank, D head dim; the batch B is 1
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..ops.masks import Causal, Mask
from ..ops.widths import widened
from . import registered  # noqa: F401  (torch.ops has the operator)
from .blocks import RankTensors
from .exchange import Exchange
from .gradients import BelowAutograd, gradients, remember
from .ranks import Ranks

CAUSAL = Causal()


def attention(
    q_BHLD: Tensor, k_BGLD: Tensor, v_BGLD: Tensor, ranks: Ranks, *, scale: float, inside: Mask | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of this rank's rows within their documents, with the keys of all ranks. Every rank calls it.

    Args:
        q_BHLD: Queries of the rank's rows, in the order of its layout; the batch is 1, H is a multiple of G.
        k_BGLD: Keys of the same rows.
        v_BGLD: Values.
        ranks: The layout on its processes.
        scale: Multiplies q k, usually 1 / sqrt(D).
        inside: Which pairs exist within a document: `Causal()` (None), `Window(n)` or `Full()`.

    Returns:
        (1, L, H, D) in the dtype of the queries, and the log-sum-exp (1, H, L), which has no gradient.
    """
    _check(q_BHLD, k_BGLD, v_BGLD, ranks)
    exchange = ranks.exchange(CAUSAL if inside is None else inside)
    width, dim = q_BHLD.shape[-1], v_BGLD.shape[-1]
    if width == dim:
        return _run(q_BHLD, k_BGLD, v_BGLD, scale, exchange)
    width = max(width, dim)
    q, k, v = (widened(x, width) for x in (q_BHLD, k_BGLD, v_BGLD))
    out, lse = _run(q, k, v, scale, exchange)
    return out if dim == width else out[..., :dim], lse


def _run(q: Tensor, k: Tensor, v: Tensor, scale: float, exchange: Exchange) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling() or type(q) is not Tensor or _get_current_dispatch_mode() is not None:
        out, lse = torch.ops.hf_longctx.ranks_flash_attn(q, k, v, scale, exchange.number)
        return out, lse
    # nothing asks for the operator, whose machinery takes the host as long as all that it calls
    out, lse = _Direct.apply(q, k, v, scale, exchange)
    return out, lse


def _check(q: Tensor, k: Tensor, v: Tensor, ranks: Ranks) -> None:
    shapes = q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
    rows = ranks.layout.sizes[ranks.rank]
    for shape in shapes:
        if len(shape) != 4 or shape[0] != 1 or shape[2] != rows:
            raise ValueError(
                f"{_given(*shapes)}: expected (1, heads, {rows}, head dim), the rows of rank {ranks.rank} in its "
                "layout. Give each rank the rows at layout.places[rank]."
            )
    if k_shape[1] != v_shape[1] or q_shape[1] % k_shape[1]:
        why = "expected as many value heads as key heads, and a multiple of them as query heads."
        raise ValueError(f"{_given(*shapes)}: {why}")
    if q_shape[3] != k_shape[3]:
        why = f"queries and keys have head dims {q_shape[3]} and {k_shape[3]}; expected the same."
        raise ValueError(f"{_given(*shapes)}: {why}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: expected one dtype. Cast k and v to that of q.")
    if not q.device == k.device == v.device == ranks.device:
        where = f"q, k, v are on {q.device}, {k.device}, {v.device}, the Ranks on {ranks.device}"
        raise ValueError(f"{where}: expected one device. Pass device=q.device to Ranks.")


def _given(q: torch.Size, k: torch.Size, v: torch.Size) -> str:
    return f"q {tuple(q)}, k {tuple(k)}, v {tuple(v)}"


class _Direct(torch.autograd.Function):
    """The operator without an operator's call."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, exchange: Exchange) -> tuple[Tensor, Tensor]:
        # under recomputation it is kept from the second forward to the backward pass that follows at once
        kept: list[Tensor] = []
        given = RankTensors(q, k, v, scale)
        with BelowAutograd():
            output = exchange.forward(given, kept)
        remember(ctx, given, exchange, output, kept)
        return output

    backward = staticmethod(gradients)
