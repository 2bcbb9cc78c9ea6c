"""One new token per row that has found tokens in pages: where `triton_found` can be used, and a check of it."""

# B batch, H query heads, T tables, D head dim, V that of values, K slots
from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..branch import Branch
from ..checked import by_itself, checked_once, disagreement, randoms
from ..found_tokens import FoundTokens
from ..paged import paged
from ..pages import Pages
from ..softcap import soft_capped
from .decode import TritonDecode, key_sets

logger = logging.getLogger("hf_longctx")
_decode = TritonDecode()


def unsupported_reason(
    branches: list[Branch], pages: Pages, softcap: float | None = None, lowered: bool = False
) -> str | None:
    """Why `attend` cannot do a window and other branches with found tokens, perhaps lowered ones; None if it can."""
    reason = _decode.unsupported_reason(branches, softcap)
    if reason is not None:
        return reason
    q, k, v = branches[0].q_BHLD, branches[0].k_BGSD, branches[0].v_BGSD
    if pages.dtype != q.dtype:
        return f"keys in pages are {pages.dtype}, and queries {q.dtype}"
    kind = q.device, q.dtype, (q.shape[-1], v.shape[-1]), q.shape[1] // k.shape[1], softcap is not None, lowered
    return checked_once(unsupported_reason, kind, lambda: _check(*kind))


def attend(
    branches: list[Branch], found: FoundTokens, scale: float, softcap: float | None = None, sink_H: Tensor | None = None
) -> Tensor:
    """(B, 1, H, V): the softmax over the window, which comes first, other branches, and the found tokens."""
    from .triton_found import decode

    first, (sets, rotary_dim) = branches[0], key_sets(branches)
    q_pos_B = first.positions.q_pos_BL[:, 0]
    given = first.q_BHLD[:, :, 0], sets[0], sets[1:], found, q_pos_B
    return decode(*given, rotary_dim, scale, softcap, sink_H)[0][:, None]


@by_itself
def _check(
    device: torch.device, dtype: torch.dtype, head_dims: tuple[int, int], group: int, capped: bool, lowered: bool
) -> str | None:
    """What is wrong with the kernel for such heads on this device; None if it gives the plain computation's output."""
    from .triton_decode import Keys
    from .triton_found import decode

    random, (dim, v_dim) = randoms(device, dtype), head_dims
    q, k, v = random(2, group, dim), random(2, 1, 300, dim), random(2, 1, 300, v_dim)
    softcap, pos = 20.0 if capped else None, torch.arange(300, device=device).repeat(2, 1)
    k[:, 0, 7] = q[:, 0]  # passes the gate, and slot 9 does not
    k[:, 0, 9] = -q.sum(1)
    pages, held = paged(k, v, pos, 1)
    table = torch.tensor([[[9, 7, -1]], [[-1, 9, 7]]], device=device)
    scores = soft_capped((q.double() @ k[:, 0].double().transpose(-1, -2)) * dim**-0.5, softcap)
    seen, less_1H = (pos < 4) | (pos >= 200), None
    seen[:, [7, 9]] = True
    if lowered:  # alike in all rows
        less_1H = torch.full((1, group), float("inf"), device=device)
        less_1H[:, 0] = 0.5
        scores[..., [7, 9]] -= less_1H[..., None].double()
    else:
        window = scores[..., 200:].logsumexp(-1)
        seen[:, [7, 9]] = (scores[..., [7, 9]] >= window[..., None]).any(1)
    truth = {"output": scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1) @ v[:, 0].double()}
    sets = [Keys(k[:, :, x], v[:, :, x], pos[:, x], None, None, 0, 300) for x in (slice(200, None), slice(4))]
    found = FoundTokens(q, table, pages, None if lowered else 0.0, less_1H)
    got = lambda: [decode(q, sets[0], sets[1:], found, pos[:, -1], 0, dim**-0.5, softcap)[0]]  # noqa: E731
    reason = disagreement(got, truth, dtype)
    del held  # what the addresses are of was needed until here
    if reason is not None:
        logger.warning("the Triton kernel for found tokens is not used, and tokens take longer: %s", reason)
    return reason
