"""One new token a row, all branches at once: our Triton kernel rotates keys as it reads them.

Elsewhere a branch's keys are rotated first, which for one query is most of the work.
"""

# B batch, H query heads, L queries, D head dim, R rotary dims
from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..available import TRITON
from ..rotation import Rotation, rotates_halves
from .check import TOLERANCE
from .few import distances

if TYPE_CHECKING:
    from ..branch import Branch

logger = logging.getLogger("hf_longctx")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_equal_halves: dict[tuple[object, int], bool] = {}


def refuses(branches: list[Branch]) -> str | None:
    """Why these branches cannot go through the kernel; None if they can."""
    from ..masks import TopKeys

    first = branches[0]
    if first.q_BHLD.shape[2] != 1:
        return "there are several queries a row"
    if not first.q_BHLD.is_cuda or not TRITON or torch.compiler.is_compiling():
        return "it is for Triton on a CUDA device, and not while torch.compile is tracing"
    for branch in branches:
        tensors = branch.q_BHLD, branch.k_BGSD, branch.v_BGSD
        if isinstance(branch.visible, TopKeys):
            return "keys are chosen per query"
        if len({t.dtype for t in tensors}) > 1 or first.q_BHLD.dtype not in DTYPES:
            return f"dtypes {[t.dtype for t in tensors]} are not one of float16, bfloat16 and float32"
        if len({t.shape[-1] for t in tensors}) > 1 or first.q_BHLD.shape[-1] > 256:
            return f"head dims {[t.shape[-1] for t in tensors]} are not one of at most 256"
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return "it has no gradients"
        for rope in (branch.q_rope, branch.k_rope):
            if rope is not None and not (_halves(rope, tensors[0].shape[-1])):
                return "the model rotates in another layout than halves"
    dims = {rope.cos.shape[-1] for b in branches for rope in (b.q_rope, b.k_rope) if rope is not None}
    if len(dims) > 1:
        return "branches rotate different numbers of dims"
    heads = first.q_BHLD.shape[1] // first.k_BGSD.shape[1]
    return disagreement(first.q_BHLD.device, first.q_BHLD.dtype, first.q_BHLD.shape[-1], max(dims, default=0), heads)


@functools.cache
@torch.no_grad()
def disagreement(device: torch.device, dtype: torch.dtype, dim: int, rotary_dim: int, group: int) -> str | None:
    """What is wrong with the kernel for such heads on this device; None if it gives the plain computation's output.

    Asked once for each kind of heads: kernels are compiled for the card at hand, with whatever Triton there is.
    """
    from .triton_decode import Keys, decode

    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, 200, dim, generator=generator, device=device, dtype=torch.float32).to(dtype)
        for heads in (group, 1, 1)
    )
    pos = torch.arange(200, device=device)[None]
    angle = pos[..., None] * 10000.0 ** (-torch.arange(0, max(rotary_dim, 2), 2, device=device) / max(rotary_dim, 2))
    turns = [f(torch.cat([angle, angle], -1)[..., :rotary_dim]).to(dtype) for f in (torch.cos, torch.sin)]

    def turned(x: Tensor) -> Tensor:
        cos, sin = (turn.double() for turn in turns)
        low, high = x.double()[..., :rotary_dim].chunk(2, -1)
        both = x.double()[..., :rotary_dim] * cos + torch.cat([-high, low], -1) * sin
        return torch.cat([both, x.double()[..., rotary_dim:]], -1)

    at_q = (turns[0][:, -1:], turns[1][:, -1:]) if rotary_dim else None
    at_k = (turns[0], turns[1]) if rotary_dim else None
    scores = (turned(q)[:, :, -1:] @ turned(k).transpose(-1, -2)) * dim**-0.5
    scores[..., :50] = float("-inf")
    truth = (scores.softmax(-1) @ v.double())[:, :, 0]
    try:
        out, _ = decode(q[:, :, -1], [Keys(k, v, pos, at_q, at_k, 0, 150)], pos[:, -1], rotary_dim, dim**-0.5)
        off = float((out.double() - truth).norm() / truth.norm())
        if off <= TOLERANCE[dtype]:
            return None
        reason = f"its output is off by {off:.1e} (relative), more than {TOLERANCE[dtype]:.0e}"
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"its check raised {type(error).__name__}: {error}"
    logger.warning("the Triton kernel for decoding is left out, and tokens take longer: %s", reason)
    return reason


def attend(branches: list[Branch], scale: float) -> Tensor:
    """(B, 1, H, D), the softmax over the union of the branches; see `refuses`."""
    from .triton_decode import Keys, decode

    q_BHD = branches[0].q_BHLD[:, :, 0]
    ropes = [rope for branch in branches for rope in (branch.q_rope, branch.k_rope) if rope is not None]
    sets = [
        Keys(
            branch.k_BGSD,
            branch.v_BGSD,
            branch.k_pos_BS,
            None if branch.q_rope is None else (branch.q_rope.cos, branch.q_rope.sin),
            None if branch.k_rope is None else (branch.k_rope.cos, branch.k_rope.sin),
            *distances(branch.visible),
        )
        for branch in branches
    ]
    rotary_dim = ropes[0].cos.shape[-1] if ropes else 0
    out, _ = decode(q_BHD, sets, branches[0].q_pos_BL[:, 0], rotary_dim, scale)
    return out[:, None]


def _halves(rope: Rotation, dim: int) -> bool:
    """Is it x cos + (-high, low) sin with the same angles in both halves? Looked at once for each model's function."""
    known = rope.apply_rotary, rope.cos.shape[-1]
    if known not in _equal_halves:
        low, high = rope.cos.chunk(2, dim=-1)
        _equal_halves[known] = rotates_halves(rope.apply_rotary, dim, known[1]) and torch.equal(low, high)
    return _equal_halves[known]
