"""Blocks of queries, each against only the range of keys that it can see. Any mask, any padding, O(S) memory a query.

On the CPU each block runs through torch's flash attention with log-sum-exp; elsewhere through the reference kernel,
which makes this the fallback for masks that the fast GPU kernels cannot express.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..branches import Selected, pairs
from . import reference
from .call import Call

_cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_REFERENCE = reference.Kernel()
BLOCK = 512
SMALL = 2**26  # scores: 256 MiB in fp32


class Kernel:
    name = "blocked"
    summary = "blocks of queries against the keys in their range: CPU flash, or plain torch on other devices"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        if isinstance(call.visible, Selected):
            return "keys are chosen per query"
        if torch.compiler.is_compiling():
            return "blocks depend on the positions' values, which cannot be traced"
        B, H, L, _ = q_BHLD.shape
        if q_BHLD.device.type != "cpu" and B * H * L * k_BGSD.shape[2] <= SMALL:
            return "all scores at once are small enough for the reference"
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        B, H, L, _ = q_BHLD.shape
        dtype = torch.promote_types(q_BHLD.dtype, torch.float32)
        out = q_BHLD.new_zeros(B, L, H, v_BGSD.shape[-1], dtype=dtype if q_BHLD.is_cuda else None)
        lse = q_BHLD.new_full((B, H, L), float("-inf"), dtype=dtype)
        for rows, cols, part in _blocks(call):
            q, k, v = q_BHLD[:, :, rows], k_BGSD[:, :, cols], v_BGSD[:, :, cols]
            out[:, rows], lse[:, :, rows] = _forward(part, q, k, v)
        return out, lse

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)  # keys get gradients from many blocks
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
        for rows, cols, part in _blocks(call):
            args = grad_BLHD[:, rows], q[:, :, rows], k[:, :, cols], v[:, :, cols]
            grads = _backward(part, *args, out_BLHD[:, rows], lse_BHL[:, :, rows])
            dq[:, :, rows] = grads[0]
            dk[:, :, cols] += grads[1]
            dv[:, :, cols] += grads[2]
        return [dq, dk.to(k.dtype), dv.to(v.dtype)]


def _blocks(call: Call) -> Iterator[tuple[slice, slice, Call]]:
    """Blocks of query rows, the columns of keys in their range, and the call restricted to both."""
    assert not isinstance(call.visible, Selected)
    L = call.q_pos_BL.shape[1]
    for start in range(0, L, BLOCK):
        rows = slice(start, min(start + BLOCK, L))
        q_pos = call.q_pos_BL[:, rows]
        real = q_pos[q_pos >= 0]
        if not len(real):
            continue
        low, high = call.visible.span(int(real.min()), int(real.max()))
        inside = ((call.k_pos_BS >= max(low, 0)) & (call.k_pos_BS <= high)).any(0).nonzero()
        if not len(inside):
            continue
        cols = slice(int(inside[0]), int(inside[-1]) + 1)
        part = Call(q_pos, call.k_pos_BS[:, cols], call.visible, call.scale, call.regular, call.padded)
        yield rows, cols, part


def _forward(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if q.device.type != "cpu":
        return _REFERENCE.forward(call, q, k, v)
    mask_BLS = _pairs(call)
    out, lse = _cpu_flash(q, k, v, attn_mask=_additive(mask_BLS, q.dtype), scale=call.scale)
    empty = ~mask_BLS.any(-1)[:, None]  # CPU flash says 0 for the log-sum-exp of a row without keys
    return out.transpose(1, 2), lse.masked_fill(empty, float("-inf"))


def _backward(
    call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
) -> list[Tensor]:
    if q.device.type != "cpu":
        return _REFERENCE.backward(call, grad_BLHD, q, k, v, out_BLHD, lse_BHL)
    lse = lse_BHL.masked_fill(lse_BHL == float("-inf"), 0.0)
    mask = _additive(_pairs(call), q.dtype)
    # the kernel wants its own forward's layout: (B, L, H, ...) in memory
    out, grad = (x.to(q.dtype).contiguous().transpose(1, 2) for x in (out_BLHD, grad_BLHD))
    lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
    return list(_cpu_flash_backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=call.scale))


def _pairs(call: Call) -> Tensor:
    assert not isinstance(call.visible, Selected)
    return pairs(call.visible, call.q_pos_BL, call.k_pos_BS)


def _additive(mask_BLS: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(mask_BLS.shape, dtype=dtype, device=mask_BLS.device)
    return zeros.masked_fill_(~mask_BLS, float("-inf"))[:, None]
