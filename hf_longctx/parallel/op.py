"""`attention`: a rank's part of attention, as one operator of torch.

Its outputs are the merged output and log-sum-exp. Selective checkpointing can keep both, so that recomputation repeats
neither attention nor exchanges. Its name contains "flash_attn", by which TRL's checkpointing finds what it keeps. Where
neither torch.compile nor such a mode looks at operators, its functions are called without one.
"""

# H query heads, G key/value heads, L rows of a rank, D head dim; the batch B is 1
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..ops.masks import Causal, Mask
from ..ops.widths import widened
from .blocks import RankResults, RankTensors
from .exchange import Exchange
from .ranks import Ranks


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
    exchange = ranks.exchange(Causal() if inside is None else inside)
    dim = v_BGLD.shape[-1]
    width = max(q_BHLD.shape[-1], dim)
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
    given = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    rows = ranks.layout.sizes[ranks.rank]
    if any(x.dim() != 4 or x.shape[0] != 1 or x.shape[2] != rows for x in (q, k, v)):
        raise ValueError(
            f"{given}: expected (1, heads, {rows}, head dim), the rows of rank {ranks.rank} in its layout. "
            "Give each rank the rows at layout.places[rank]."
        )
    if k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{given}: expected as many value heads as key heads, and a multiple of them as query heads.")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"{given}: queries and keys have head dims {q.shape[3]} and {k.shape[3]}; expected the same.")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: expected one dtype. Cast k and v to that of q.")
    if not q.device == k.device == v.device == ranks.device:
        where = f"q, k, v are on {q.device}, {k.device}, {v.device}, the Ranks on {ranks.device}"
        raise ValueError(f"{where}: expected one device. Pass device=q.device to Ranks.")


@torch.library.custom_op("hf_longctx::ranks_flash_attn", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float, exchange: int) -> tuple[Tensor, Tensor]:
    return Exchange.of(exchange).forward(RankTensors(q, k, v, scale))


@torch.library.custom_op("hf_longctx::ranks_flash_attn_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, exchange: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _derive(Exchange.of(exchange), RankTensors(q, k, v, scale), RankResults(grad.contiguous(), out, lse))


def _derive(exchange: Exchange, given: RankTensors, found: RankResults) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = map(_by_row, exchange.backward(given, found), (given.q_BHLD, given.k_BGLD, given.v_BGLD))
    return dq, dk, dv


def _by_row(grad_BHLD: Tensor, x_BHLD: Tensor) -> Tensor:
    """A gradient in the dtype of its tensor, in memory row by row, as projections want it, and shared with no other."""
    rows_BLHD = grad_BHLD.transpose(1, 2)
    part = rows_BLHD.untyped_storage().nbytes() > rows_BLHD.numel() * rows_BLHD.element_size()
    return rows_BLHD.to(x_BHLD.dtype, copy=part, memory_format=torch.contiguous_format).transpose(1, 2)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, exchange: int) -> tuple[Tensor, Tensor]:
    B, H, L, _ = q.shape
    return q.new_empty(B, L, H, v.shape[3]), q.new_empty(B, H, L, dtype=torch.promote_types(q.dtype, torch.float32))


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, exchange: int
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v))
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, scale, number = inputs
    _remember(ctx, RankTensors(q, k, v, scale), Exchange.of(number), output)


def _remember(
    ctx: Any, given: RankTensors, exchange: Exchange, output: tuple[Tensor, Tensor], kept: Sequence[Tensor] = ()
) -> None:
    ctx.scale, ctx.exchange = given.scale, exchange  # alive as long as the graph
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the log-sum-exp
    ctx.save_for_backward(given.q_BHLD, given.k_BGLD, given.v_BGLD, *output, *kept)


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    q, k, v, out, lse, *kept = ctx.saved_tensors
    if type(grad) is Tensor and not torch.compiler.is_compiling():
        found = RankResults(grad.contiguous(), out, lse, tuple(kept))
        return *_derive(ctx.exchange, RankTensors(q, k, v, ctx.scale), found), None, None
    backward = torch.ops.hf_longctx.ranks_flash_attn_backward
    return *backward(grad, q, k, v, out, lse, ctx.scale, ctx.exchange.number), None, None


class _Direct(torch.autograd.Function):
    """The operator without an operator's call."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, exchange: Exchange) -> tuple[Tensor, Tensor]:
        # under recomputation it is kept from the second forward to the backward pass that follows at once
        kept: list[Tensor] = []
        given = RankTensors(q, k, v, scale)
        output = exchange.forward(given, kept)
        _remember(ctx, given, exchange, output, kept)
        return output

    backward = staticmethod(_gradients)


_forward.register_autograd(_gradients, setup_context=_keep)
