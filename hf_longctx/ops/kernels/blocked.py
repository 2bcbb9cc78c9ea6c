"""Blocks of queries, each against only the range of keys that it can see. Any mask, any padding, O(S) memory a query.

On the CPU each block runs through torch's flash attention with log-sum-exp; elsewhere through the reference kernel,
which makes this the fallback for masks that the fast GPU kernels cannot express.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..masks import TopKeys, pairs
from . import reference
from .base import Call

_cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_REFERENCE = reference.Kernel()
BLOCK = 256
SMALL = 2**26  # scores: 256 MiB in fp32
MEMO = 2**25  # mask entries of one forward that are worth keeping for its other layers


class Kernel:
    name = "blocked"
    summary = "blocks of queries against the keys in their range: CPU flash, or plain torch on other devices"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        if isinstance(call.visible, TopKeys):
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
        for block in _blocks(call, q_BHLD.dtype):
            rows, cols = block.rows, block.cols
            q, k, v = q_BHLD[:, :, rows], k_BGSD[:, :, cols], v_BGSD[:, :, cols]
            out[:, rows], lse[:, :, rows] = _forward(call, block, q, k, v)
        return out, lse

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)  # keys get gradients from many blocks
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
        for block in _blocks(call, q.dtype):
            rows, cols = block.rows, block.cols
            args = grad_BLHD[:, rows], q[:, :, rows], k[:, :, cols], v[:, :, cols]
            grads = _backward(call, block, *args, out_BLHD[:, rows], lse_BHL[:, :, rows])
            dq[:, :, rows] = grads[0]
            dk[:, :, cols] += grads[1]
            dv[:, :, cols] += grads[2]
        return [dq, dk.to(k.dtype), dv.to(v.dtype)]


@dataclass(frozen=True, eq=False)
class Block:
    """Some query rows, the columns of keys in their range, and which pairs exist, additive; `empty` rows have none."""

    rows: slice
    cols: slice
    mask_B1LS: Tensor
    empty_B1L: Tensor


def _blocks(call: Call, dtype: torch.dtype) -> Iterable[Block]:
    if call.memo is None:
        return _make_blocks(call, dtype)
    key = (__name__, call.visible, dtype)
    if key not in call.memo:
        call.memo[key] = []
        kept = 0
        for block in _make_blocks(call, dtype):
            kept += block.mask_B1LS.numel()
            if kept > MEMO:
                call.memo[key] = None
                break
            call.memo[key].append(block)
    return _make_blocks(call, dtype) if call.memo[key] is None else call.memo[key]


def _make_blocks(call: Call, dtype: torch.dtype) -> Iterator[Block]:
    assert not isinstance(call.visible, TopKeys)
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
        mask = pairs(call.visible, q_pos, call.k_pos_BS[:, cols])
        additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
        yield Block(rows, cols, additive[:, None], ~mask.any(-1)[:, None])


def _forward(call: Call, block: Block, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if q.device.type != "cpu":
        return _REFERENCE.forward(_part(call, block), q, k, v)
    out, lse = _cpu_flash(q, k, v, attn_mask=block.mask_B1LS, scale=call.scale)
    # CPU flash says 0 for the log-sum-exp of a row without keys
    return out.transpose(1, 2), lse.masked_fill(block.empty_B1L, float("-inf"))


def _backward(
    call: Call, block: Block, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
) -> list[Tensor]:
    if q.device.type != "cpu":
        return _REFERENCE.backward(_part(call, block), grad_BLHD, q, k, v, out_BLHD, lse_BHL)
    lse = lse_BHL.masked_fill(lse_BHL == float("-inf"), 0.0)
    # the kernel wants its own forward's layout: (B, L, H, ...) in memory
    out, grad = (x.to(q.dtype).contiguous().transpose(1, 2) for x in (out_BLHD, grad_BLHD))
    lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
    return list(_cpu_flash_backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=block.mask_B1LS, scale=call.scale))


def _part(call: Call, block: Block) -> Call:
    q_pos, k_pos = call.q_pos_BL[:, block.rows], call.k_pos_BS[:, block.cols]
    return dataclasses.replace(call, q_pos_BL=q_pos, k_pos_BS=k_pos, memo=None)
