"""One new token per row, all branches at once: a Triton kernel that rotates keys as it reads them.

Elsewhere a branch's keys are rotated first, which for one query is most of the work.
"""

# B batch, H query heads, L queries, D head dim, R rotary dims
from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..available import TRITON
from ..branch import Branch
from ..checked import by_itself, checked_once, disagreement, randoms
from ..layout import rotates_halves
from ..masks import BeyondWindow, ByDistance, Causal, Full, Window
from ..rotation import Rotation
from ..softcap import soft_capped
from .base import NO_TRITON, takes
from .fused import FusedKernel

logger = logging.getLogger("hf_longctx")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_equal_halves: dict[tuple[object, int], bool] = {}


class TritonDecode(FusedKernel):
    """See the module."""

    name = "triton_decode"
    masks = (Causal, Window, BeyondWindow, Full)

    def unsupported_reason(self, branches: list[Branch], softcap: float | None = None) -> str | None:
        """See `FusedKernel`."""
        first = branches[0].q_BHLD
        if first.shape[2] != 1:
            return "there are several queries per row"
        if not first.is_cuda:
            return "tensors are not on a CUDA device"
        if not TRITON or torch.compiler.is_compiling():
            return NO_TRITON
        for branch in branches:
            tensors = branch.q_BHLD, branch.k_BGSD, branch.v_BGSD
            if not takes(self.masks, branch.mask) or branch.bias is not None:
                return f"it has no {type(branch.mask).__name__} mask, or no bias"
            if len({t.dtype for t in tensors}) > 1 or first.dtype not in DTYPES:
                return f"dtypes {[t.dtype for t in tensors]} are not one of float16, bfloat16 and float32"
            if branch.k_BGSD.shape[-1] != first.shape[-1] or any(t.shape[-1] > 256 for t in tensors):
                return f"head dims {[t.shape[-1] for t in tensors]} are over 256, or queries and keys have not the same"
            if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
                return "it has no gradients"
            for rope in (branch.q_rope, branch.k_rope):
                if rope is not None and not (_halves(rope, first.shape[-1])):
                    return "the model rotates in another layout than halves"
        dims = {rope.cos.shape[-1] for b in branches for rope in (b.q_rope, b.k_rope) if rope is not None}
        if len(dims) > 1:
            return "branches rotate different numbers of dims"
        group = first.shape[1] // branches[0].k_BGSD.shape[1]
        head_dims = first.shape[-1], branches[0].v_BGSD.shape[-1]
        kind = first.device, first.dtype, head_dims, max(dims, default=0), group, softcap is not None
        return checked_once(self, kind, lambda: _check(*kind))

    def forward(
        self, branches: list[Branch], scale: float, softcap: float | None = None, sink_H: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `FusedKernel`."""
        from .triton_decode import decode

        first, (sets, rotary_dim) = branches[0], key_sets(branches)
        q_pos_B = first.positions.q_pos_BL[:, 0]
        out, lse = decode(first.q_BHLD[:, :, 0], sets, q_pos_B, rotary_dim, scale, softcap, sink_H)
        return out[:, None], lse[..., None]


def key_sets(branches: list[Branch]) -> tuple[list[Any], int]:
    """The branches as `triton_decode.Keys`, and how many dims are rotated."""
    from .triton_decode import Keys

    ropes = [rope for branch in branches for rope in (branch.q_rope, branch.k_rope) if rope is not None]
    sets = []
    for branch in branches:
        assert isinstance(branch.mask, ByDistance)
        q_turn, k_turn = (None if rope is None else (rope.cos, rope.sin) for rope in (branch.q_rope, branch.k_rope))
        keys = branch.k_BGSD, branch.v_BGSD, branch.positions.k_pos_BS
        sets.append(Keys(*keys, q_turn, k_turn, *branch.mask.distances))
    return sets, ropes[0].cos.shape[-1] if ropes else 0


@by_itself
def _check(
    device: torch.device, dtype: torch.dtype, head_dims: tuple[int, int], rotary_dim: int, group: int, capped: bool
) -> str | None:
    """What is wrong with the kernel for such heads on this device; None if it gives the plain computation's output.

    Kernels are compiled for the card at hand, with whatever Triton there is. Two rows, the second padded, and two heads
    of keys: what is right of the first alone would decode wrong tokens for the others of a batch.
    """
    from .triton_decode import Keys, decode

    random, (dim, v_dim) = randoms(device, dtype), head_dims
    q, k, v = random(2, 2 * group, 1, dim), random(2, 2, 200, dim), random(2, 2, 200, v_dim)
    softcap = 1.0 if capped else None
    pos = (torch.arange(200, device=device) - torch.tensor([[0], [90]], device=device)).clamp(min=-1)
    angle = pos[..., None] * 10000.0 ** (-torch.arange(0, max(rotary_dim, 2), 2, device=device) / max(rotary_dim, 2))
    cos, sin = (f(torch.cat([angle, angle], -1)[..., :rotary_dim]).to(dtype) for f in (torch.cos, torch.sin))

    def turned(x: Tensor) -> Tensor:
        low, high = x.double()[..., :rotary_dim].chunk(2, -1)
        cos_x, sin_x = (table.double()[:, None, -x.shape[2] :] for table in (cos, sin))
        both = x.double()[..., :rotary_dim] * cos_x + torch.cat([-high, low], -1) * sin_x
        return torch.cat([both, x.double()[..., rotary_dim:]], -1)

    at_q = (cos[:, -1:], sin[:, -1:]) if rotary_dim else None
    at_k = (cos, sin) if rotary_dim else None
    k_heads, v_heads = (x.repeat_interleave(group, 1) for x in (turned(k), v.double()))
    scores = soft_capped((turned(q) @ k_heads.transpose(-1, -2)) * dim**-0.5, softcap)
    seen = (pos >= 0) & (pos > pos[:, -1:] - 150)
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    truth = {"output": (scores.softmax(-1) @ v_heads)[:, :, 0]}
    keys = [Keys(k, v, pos, at_q, at_k, 0, 150)]
    got = lambda: [decode(q[:, :, 0], keys, pos[:, -1], rotary_dim, dim**-0.5, softcap)[0]]  # noqa: E731
    reason = disagreement(got, truth, dtype)
    if reason is not None:
        logger.warning("the Triton kernel for decoding is not used, and tokens take longer: %s", reason)
    return reason


def _halves(rope: Rotation, dim: int) -> bool:
    """Is it x cos + (-high, low) sin with the same angles in both halves? Looked at once for each model's function."""
    known = rope.layout, rope.cos.shape[-1]
    if known not in _equal_halves:
        low, high = rope.cos.chunk(2, dim=-1)
        _equal_halves[known] = rotates_halves(rope.layout, dim, known[1]) and torch.equal(low, high)
    return _equal_halves[known]
