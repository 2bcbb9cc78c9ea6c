"""Blocks of queries, each against only the range of keys that it can see. Any mask, any padding, O(S) memory per query.

On the CPU each block runs through torch's flash attention with log-sum-exp; elsewhere, and with a bias or a cap,
through the reference kernel, which makes this the fallback for masks that the fast GPU kernels cannot express.
"""

# B batch, H query heads (or 1), G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bias import Bias
from ..masks import Mask, pairs
from ..positions import Positions
from .base import Call, Kernel
from .reference import Reference

_cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_REFERENCE = Reference()
BLOCK = 256
SMALL = 2**26  # scores: 256 MiB in fp32
MEMO = 2**25  # mask entries of one forward that are worth keeping for its other layers


class Blocked(Kernel):
    """See the module."""

    name = "blocked"
    priority = 70
    summary = "blocks of queries against the keys in their range: CPU flash, or plain torch on other devices"
    masks = (Mask,)
    biases = (Bias,)
    softcaps = True

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        if torch.compiler.is_compiling():
            return "blocks depend on the positions' values, which cannot be traced"
        return None

    def slower_reason(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        B, H, L, _ = q_BHLD.shape
        if L == 1 and q_BHLD.dtype == torch.float32:
            return "one row of scores costs less than blocks and their masks"
        if q_BHLD.device.type != "cpu" and B * H * L * k_BGSD.shape[2] <= SMALL:
            return "all scores at once are small enough for the reference"
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        B, H, L, _ = q_BHLD.shape
        dtype = torch.promote_types(q_BHLD.dtype, torch.float32)
        out = q_BHLD.new_zeros(B, L, H, v_BGSD.shape[-1], dtype=None if _is_flash(call, q_BHLD) else dtype)
        lse = q_BHLD.new_full((B, H, L), float("-inf"), dtype=dtype)
        for block in _blocks(call, q_BHLD):
            rows, columns = block.rows, block.columns
            q, k, v = q_BHLD[:, :, rows], k_BGSD[:, :, columns], v_BGSD[:, :, columns]
            out[:, rows], lse[:, :, rows] = _forward(call, block, q, k, v)
        return out, lse

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """See `Kernel`."""
        dtype = torch.promote_types(q.dtype, torch.float32)  # keys get gradients from many blocks
        learned = [call.bias.weights] if call.bias is not None and call.bias.weights.requires_grad else []
        dq, dk, dv, *dbias = (torch.zeros_like(x, dtype=dtype) for x in (q, k, v, *learned))
        for block in _blocks(call, q):
            rows, columns = block.rows, block.columns
            args = grad_BLHD[:, rows], q[:, :, rows], k[:, :, columns], v[:, :, columns]
            grads = _gradients(call, block, *args, out_BLHD[:, rows], lse_BHL[:, :, rows])
            dq[:, :, rows] = grads[0]
            dk[:, :, columns] += grads[1]
            dv[:, :, columns] += grads[2]
            for total, grad in zip(dbias, grads[3:], strict=True):
                total += grad
        return [dq, dk, dv, *dbias]


@dataclass(frozen=True, eq=False)
class Block:
    """Some query rows and the slots of keys in their range; for CPU flash also which pairs exist, additive.

    `empty` rows have no key.
    """

    rows: slice
    columns: slice
    mask_BHLS: Tensor | None = None
    empty_BHL: Tensor | None = None


def _is_flash(call: Call, q_BHLD: Tensor) -> bool:
    return q_BHLD.device.type == "cpu" and call.bias is None and call.softcap is None


def _blocks(call: Call, q_BHLD: Tensor) -> Iterable[Block]:
    memo, key = call.positions.memo, (__name__, call.mask, q_BHLD.dtype, _is_flash(call, q_BHLD))
    if memo is None or not call.mask.by_position:
        return _make_blocks(call, q_BHLD)
    if key not in memo:
        memo[key] = []
        kept = 0
        for block in _make_blocks(call, q_BHLD):
            kept += 0 if block.mask_BHLS is None else block.mask_BHLS.numel()
            if kept > MEMO:
                memo[key] = None
                break
            memo[key].append(block)
    return _make_blocks(call, q_BHLD) if memo[key] is None else memo[key]


def _make_blocks(call: Call, q_BHLD: Tensor) -> Iterator[Block]:
    q_pos_BL, k_pos_BS = call.positions.q_pos_BL, call.positions.k_pos_BS
    L = q_pos_BL.shape[1]
    for start in range(0, L, BLOCK):
        rows = slice(start, min(start + BLOCK, L))
        q_pos = q_pos_BL[:, rows]
        real = q_pos[q_pos >= 0]
        if not len(real):
            continue
        low, high = call.mask.span(int(real.min()), int(real.max()))
        inside = ((k_pos_BS >= max(low, 0)) & (k_pos_BS <= high)).any(0).nonzero()
        if not len(inside):
            continue
        columns = slice(int(inside[0]), int(inside[-1]) + 1)
        if not _is_flash(call, q_BHLD):
            yield Block(rows, columns)
            continue
        seen = pairs(call.mask.at(rows, columns), q_pos, k_pos_BS[:, columns])
        additive = torch.zeros(seen.shape, dtype=q_BHLD.dtype).masked_fill_(~seen, float("-inf"))
        yield Block(rows, columns, additive, ~seen.any(-1))


def _forward(call: Call, block: Block, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if block.mask_BHLS is None or block.empty_BHL is None:
        return _REFERENCE.forward(_part(call, block), q, k, v)
    out, lse = _cpu_flash(q, k, v, attn_mask=block.mask_BHLS, scale=call.scale)
    # CPU flash says 0 for the log-sum-exp of a row without keys
    return out.transpose(1, 2), lse.masked_fill(block.empty_BHL, float("-inf"))


def _gradients(
    call: Call, block: Block, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
) -> list[Tensor]:
    if block.mask_BHLS is None:
        return _REFERENCE.gradients(_part(call, block), grad_BLHD, q, k, v, out_BLHD, lse_BHL)
    lse = lse_BHL.masked_fill(lse_BHL == float("-inf"), 0.0)
    # the kernel wants its own forward's layout: (B, L, H, ...) in memory
    out, grad = (x.to(q.dtype).contiguous().transpose(1, 2) for x in (out_BLHD, grad_BLHD))
    lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
    return list(_cpu_flash_backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=block.mask_BHLS, scale=call.scale))


def _part(call: Call, block: Block) -> Call:
    """The call of one block alone."""
    positions = call.positions
    q_pos, k_pos = positions.q_pos_BL[:, block.rows], positions.k_pos_BS[:, block.columns]
    return replace(call, positions=Positions(q_pos, k_pos), mask=call.mask.at(block.rows, block.columns))
