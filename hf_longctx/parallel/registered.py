"""torch's operators of `attention` and of its gradients, registered once in a process.

torch keeps a pointer to an operator's Python object without owning it. If a name is registered again, as when a
notebook reloads this package, the pointer dangles, and the next dispatch mode reads freed memory. So a second import
registers nothing, and what the first one registered looks for the package's functions when it is called.
"""

# H query heads, L rows of a rank; the batch B is 1
from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

FORWARD, BACKWARD = "ranks_flash_attn", "ranks_flash_attn_backward"


def _now(module: str) -> Any:
    return importlib.import_module(f"{__package__}.{module}")


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float, exchange: int) -> tuple[Tensor, Tensor]:
    return _now("exchange").Exchange.of(exchange).forward(_now("blocks").RankTensors(q, k, v, scale))


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, exchange: int
) -> tuple[Tensor, Tensor, Tensor]:
    blocks = _now("blocks")
    given, found = blocks.RankTensors(q, k, v, scale), blocks.RankResults(grad.contiguous(), out, lse)
    return _now("gradients").derive_apart(_now("exchange").Exchange.of(exchange), given, found)


def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, scale: float, exchange: int) -> tuple[Tensor, Tensor]:
    B, H, L, _ = q.shape
    return q.new_empty(B, L, H, v.shape[3]), q.new_empty(B, H, L, dtype=torch.promote_types(q.dtype, torch.float32))


def _backward_shapes(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, exchange: int
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v))
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *qkv, scale, number = inputs
    exchange = _now("exchange").Exchange.of(number)
    _now("gradients").remember(ctx, _now("blocks").RankTensors(*qkv, scale), exchange, output)


def _gradients(ctx: Any, grad: Tensor | None, of_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    return _now("gradients").gradients(ctx, grad, of_lse)


def _register() -> None:
    if hasattr(torch.ops.hf_longctx, BACKWARD):
        return
    forward = torch.library.custom_op(f"hf_longctx::{FORWARD}", _forward, mutates_args=())
    backward = torch.library.custom_op(f"hf_longctx::{BACKWARD}", _backward, mutates_args=())
    forward.register_fake(_forward_shapes)
    backward.register_fake(_backward_shapes)
    forward.register_autograd(_gradients, setup_context=_keep)


_register()
