"""Attention of many rows to one prefix and to a suffix of their own each (Juravsky et al. 2024, section 3).

The queries of all rows, tokens and heads that share keys meet the prefix as one matrix product; the parts are merged by
log-sum-exp, so the result is exact. https://arxiv.org/abs/2402.05099

A prefix is read by as many multiprocessors as its queries have tiles. Where that leaves some idle it is cut into parts
of keys, which are a batch for the kernel.
"""

# B batch, H query heads, G key/value heads, L queries, P keys of a prefix, S keys of suffixes, D head dim
# N parts of a prefix, R = B L H/G rows of queries that share keys
from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .available import TRITON
from .checked import by_itself, checked_once, disagreement, randoms
from .kernels import Call, choose
from .kernels.base import NO_TRITON
from .kernels.decode import DTYPES
from .masks import ANY, Causal, Full, Window
from .merge import merge
from .positions import Positions
from .widths import widened

logger = logging.getLogger("hf_longctx")
TILE = 128  # queries of a tile of flash attention
# what a tile costs besides its keys (to start, to write and to merge), and what a rest does: in keys read
START, REST = 320, 128
LEAST = 256  # keys of a part


@dataclass(frozen=True, eq=False)
class PrefixKeys:
    """Keys and values (1, G, P, D) that every row sees, and their positions (1, P). Cut into parts: see `cut`."""

    k_1GPD: Tensor
    v_1GPD: Tensor
    pos_1P: Tensor


@dataclass(frozen=True, eq=False)
class SuffixKeys:
    """Keys and values (B, G, S, D) of each row's own, with positions (B, S); -1 is an empty slot."""

    k_BGSD: Tensor
    v_BGSD: Tensor
    pos_BS: Tensor
    consecutive: bool  # see `Positions`
    padded: bool


@dataclass(frozen=True, eq=False)
class PrefixQuery:
    """Queries (B, H, L, D) at positions (B, L), and how they attend: see `Positions` for `memo`."""

    q_BHLD: Tensor
    pos_BL: Tensor
    window: int | None
    scale: float
    memo: dict[Any, Any] = field(default_factory=dict)


@torch.no_grad()
def attend(query: PrefixQuery, own: SuffixKeys, prefix: Sequence[PrefixKeys], kernel: str = "auto") -> Tensor:
    """Softmax attention over the union of a prefix and each row's own keys.

    Args:
        query: The queries.
        own: What each row has of its own, the queries' own tokens included.
        prefix: The levels of the prefix, in order; all before everything in `own`. Sliding-window layers may hold none.
        kernel: "auto" or a name from `hf_longctx.ops.kernels.KERNELS`.

    Returns:
        (B, L, H, D) in the queries' dtype, D that of the values.
    """
    q, dim = query.q_BHLD, own.v_BGSD.shape[-1]
    prefix = [PrefixKeys(s.k_1GPD.to(q.device, q.dtype), s.v_1GPD.to(q.device, q.dtype), s.pos_1P) for s in prefix]
    if q.shape[-1] != dim:
        return attend(*_one_width(query, own, prefix), kernel)[..., :dim]
    own = SuffixKeys(own.k_BGSD.to(q.dtype), own.v_BGSD.to(q.dtype), own.pos_BS, own.consecutive, own.padded)
    prefix = [shared for shared in prefix if shared.k_1GPD.shape[2]]  # CPU flash ends the process at zero keys
    if kernel == "auto" and q.shape[2] == 1 and fused_unsupported_reason(query, own) is None:
        return fused(query, own, prefix)
    return merged(query, own, prefix, kernel)


def _one_width(
    query: PrefixQuery, own: SuffixKeys, prefix: Sequence[PrefixKeys]
) -> tuple[PrefixQuery, SuffixKeys, list[PrefixKeys]]:
    """Keys and values of one head dim, by zeros: kernels know one."""
    width = max(query.q_BHLD.shape[-1], own.v_BGSD.shape[-1])
    k, v = widened(own.k_BGSD, width), widened(own.v_BGSD, width)
    levels = [replace(s, k_1GPD=widened(s.k_1GPD, width), v_1GPD=widened(s.v_1GPD, width)) for s in prefix]
    return replace(query, q_BHLD=widened(query.q_BHLD, width)), replace(own, k_BGSD=k, v_BGSD=v), levels


def merged(query: PrefixQuery, own: SuffixKeys, prefix: Sequence[PrefixKeys], kernel: str = "auto") -> Tensor:
    """`attend` in torch's own operations, by any kernels."""
    q = query.q_BHLD
    mask = Causal() if query.window is None else Window(query.window)
    memo = query.memo.setdefault("own", {})
    same_rows = own.consecutive and q.shape[2] == own.pos_BS.shape[1]
    positions = Positions(query.pos_BL, own.pos_BS, same_rows, own.consecutive, own.padded, memo=memo)
    call = Call(positions, mask, query.scale)
    out, lse = choose(call, q, own.k_BGSD, kernel, strict=False).forward(call, q, own.k_BGSD, own.v_BGSD)
    for i, shared in enumerate(prefix):
        parts, rest = cut(shared, parts_for(query, shared))
        for name, piece in (("parts", parts), ("rest", rest and cut(rest, 1)[0])):
            if piece is not None:
                outs, lses = unfold(*folded(query, piece, _memo(query, piece, i, name), kernel), q.shape)
                for one in zip(outs, lses, strict=True):
                    out, lse = merge(out, lse, *one)
    return out.to(q.dtype)


# -- one product for all rows ------------------------------------------------------------------------------------------
def parts_for(query: PrefixQuery, shared: PrefixKeys) -> int:
    """How many parts of a prefix fill the card."""
    (B, H, L, _), (_, G, P, _) = query.q_BHLD.shape, shared.k_1GPD.shape
    if query.window is not None or query.q_BHLD.device.type != "cuda":
        return 1
    processors = torch.cuda.get_device_properties(query.q_BHLD.device).multi_processor_count
    return _parts(G * -(-B * L * (H // G) // TILE), P, processors)


@functools.cache
def _parts(tiles: int, keys: int, processors: int) -> int:
    """The number of parts at which `tiles` of queries have read all keys soonest. Many tiles fill the card anyhow."""
    if tiles >= 4 * processors:
        return 1

    def length(n: int) -> int:
        return -(-tiles * n // processors) * (keys // n + START) + (REST if keys % n else 0)

    return min(range(1, max(keys // LEAST, 1) + 1), key=length)


def cut(shared: PrefixKeys, parts: int) -> tuple[PrefixKeys, PrefixKeys | None]:
    """A prefix as (G, N, P // N, D), a view, and the fewer than N keys that are left, if any."""
    size = shared.k_1GPD.shape[2] // parts
    end = size * parts
    k, v = (x[0, :, :end].unflatten(1, (parts, size)) for x in (shared.k_1GPD, shared.v_1GPD))
    rest = PrefixKeys(shared.k_1GPD[:, :, end:], shared.v_1GPD[:, :, end:], shared.pos_1P[:, end:])
    return PrefixKeys(k, v, shared.pos_1P[:, :end]), rest if rest.k_1GPD.shape[2] else None


def folded(query: PrefixQuery, parts: PrefixKeys, memo: dict[Any, Any], kernel: str = "auto") -> tuple[Tensor, Tensor]:
    """Every part of what `cut` gave by one kernel, all queries at once: out (G, R, N, D) and lse (G, N, R)."""
    k, v = parts.k_1GPD, parts.v_1GPD
    q_GNRD = fold(query.q_BHLD, *k.shape[:2])
    alone = k.shape[1] == 1
    q, k, v = (x.transpose(0, 1) if alone else x for x in (q_GNRD, k, v))
    if "call" not in memo:
        memo["call"] = _call(query, parts.pos_1P, q, k, memo.setdefault("kernel", {}))
    call = memo["call"]
    out, lse = choose(call, q, k, kernel, strict=False).forward(call, q, k, v)
    return (out.transpose(0, 2), lse.transpose(0, 1)) if alone else (out, lse)


def _memo(query: PrefixQuery, shared: PrefixKeys, level: int, name: str) -> dict[Any, Any]:
    """What follows from positions and numbers of heads alone, and is the same for other layers."""
    place = name, level, query.window, query.q_BHLD.shape[1], *shared.k_1GPD.shape[:3]
    memo: dict[Any, Any] = query.memo.setdefault(place, {})
    return memo


def _call(query: PrefixQuery, pos_1P: Tensor, q: Tensor, k: Tensor, memo: dict[Any, Any]) -> Call:
    R = q.shape[2]
    if query.window is None:
        # padding rows may see the prefix: their output is not used, and fast kernels want no padding
        zero = query.pos_BL.new_zeros(1, 1)
        pos = zero.expand(len(q), R), zero.expand(len(k), k.shape[2])
        return Call(Positions(*pos, padded=False, memo=memo), Full(), query.scale)
    rows = query.pos_BL.reshape(-1).repeat_interleave(R // query.pos_BL.numel())[None]
    return Call(Positions(rows, pos_1P, memo=memo), Window(query.window), query.scale)


def fold(q_BHLD: Tensor, groups: int, parts: int) -> Tensor:
    """(G, N, R, D): rows, tokens and the heads that share keys, in this order, once for every part."""
    q_GBLRD = q_BHLD.unflatten(1, (groups, -1)).permute(1, 0, 3, 2, 4)
    return q_GBLRD[:, None].expand(-1, parts, -1, -1, -1, -1).reshape(groups, parts, -1, q_BHLD.shape[-1])


def unfold(out_GRND: Tensor, lse_GNR: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(N, B, L, H, D) and (N, B, H, L): the inverse of `fold`."""
    B, H, L, _ = shape
    rows = B, L, H // len(out_GRND)
    out = out_GRND.unflatten(1, rows).permute(4, 1, 2, 0, 3, 5).flatten(3, 4)
    return out, lse_GNR.unflatten(2, rows).permute(1, 2, 0, 4, 3).flatten(2, 3)


# -- one token per row, in three kernels -------------------------------------------------------------------------------
def fused_unsupported_reason(query: PrefixQuery, own: SuffixKeys) -> str | None:
    """Why one token per row cannot go through the Triton kernels; None if it can."""
    q, k = query.q_BHLD, own.k_BGSD
    if not q.is_cuda or not TRITON or torch.compiler.is_compiling():
        return "tensors are not on a CUDA device" if not q.is_cuda else NO_TRITON
    if q.dtype not in DTYPES or q.shape[-1] > 256 or q.shape[-1] % 2 or own.v_BGSD.shape[-1] != q.shape[-1]:
        return f"{q.dtype} with head dim {q.shape[-1]}"
    kind = q.device, q.dtype, q.shape[-1], q.shape[1] // k.shape[1]
    return checked_once(fused, kind, lambda: _check(*kind))


def fused(query: PrefixQuery, own: SuffixKeys, prefix: Sequence[PrefixKeys], parts: int | None = None) -> Tensor:
    """`attend` for one token per row: suffixes and windowed levels by one kernel, the prefix by another, one merge."""
    from .kernels.triton_decode import Keys, decode, decode_parts
    from .kernels.triton_merge import merge_folded

    q_BHLD, B = query.q_BHLD, len(query.q_BHLD)
    q_BHD, q_pos, D = q_BHLD[:, :, 0], query.pos_BL[:, 0], q_BHLD.shape[-1]
    far = ANY if query.window is None else query.window

    def seen(shared: PrefixKeys) -> Keys:
        k, v = (x.expand(B, -1, -1, -1) for x in (shared.k_1GPD, shared.v_1GPD))
        return Keys(k, v, shared.pos_1P, None, None, 0, far)

    near, products = [Keys(own.k_BGSD, own.v_BGSD, own.pos_BS, None, None, 0, far)], []
    for i, shared in enumerate(prefix):
        if query.window is not None:
            near.append(seen(shared))
            continue
        pieces, rest = cut(shared, parts_for(query, shared) if parts is None else parts)
        products.append(folded(query, pieces, _memo(query, pieces, i, "parts")))
        if rest is not None:
            near.append(seen(rest))
    if not products:
        return decode(q_BHD, near, q_pos, D, query.scale)[0][:, None]
    found = decode_parts(q_BHD, near, q_pos, D, query.scale)
    for i, (out, lse) in enumerate(products):
        last = i == len(products) - 1
        found = merge_folded(*found, out, lse, dtype=q_BHD.dtype if last else torch.float32)
    return found[0].transpose(0, 1)


@by_itself
def _check(device: torch.device, dtype: torch.dtype, dim: int, group: int) -> str | None:
    """What is wrong with `fused` for such heads on this device; None if it gives what `merged` gives."""
    random = randoms(device, dtype)
    P, S, B, G = 603, 37, 5, 2
    tensors = [random(*shape) for shape in ((B, G * group, 1, dim), *[(B, G, S, dim)] * 2, *[(1, G, P, dim)] * 2)]
    pos = torch.arange(P, device=device)[None]
    own_pos = P + torch.arange(S, device=device).expand(B, S).clone()
    own_pos[:, -7:] = -1
    own_pos[0, :3] = -1
    at = torch.full((B, 1), P + S - 7, device=device)

    def given(to: torch.dtype) -> tuple[PrefixQuery, SuffixKeys, list[PrefixKeys]]:
        q, k, v, prefix_k, prefix_v = (x.to(to) for x in tensors)
        own = SuffixKeys(k, v, own_pos, consecutive=False, padded=True)
        return PrefixQuery(q, at, None, dim**-0.5), own, [PrefixKeys(prefix_k, prefix_v, pos)]

    def got() -> list[Tensor]:
        out = fused(*given(dtype), parts=4)
        torch.accelerator.synchronize()
        return [out]

    reason = disagreement(got, {"output": merged(*given(torch.float64), kernel="reference")}, dtype)
    if reason is not None:
        logger.warning("decoding after a shared prefix takes longer, without the Triton kernels: %s", reason)
    return reason
