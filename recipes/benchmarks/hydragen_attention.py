"""Attention of one layer to a shared prefix and to suffixes, one token per row, beside stock's sdpa."""

# B batch, H query heads, G key/value heads, P keys of a prefix, S keys of a suffix, D head dim
from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_longctx.evaluation.rows import row
from hf_longctx.ops.prefix import (
    PrefixKeys,
    PrefixQuery,
    SuffixKeys,
    attend,
    cut,
    folded,
    fused_unsupported_reason,
    parts_for,
)

from .reading import K
from .timing import by_clock, milliseconds

SHAPES = ((9, 3, 64), (8, 1, 128))
SWEEP = (1, 2, 3, 4, 5, 7, 8, 9, 11, 16)
Attempt = Callable[[str, str, Callable[[], dict[str, Any]]], dict[str, Any]]


def replayed(work: Callable[[], Any], runs: int = 7, inside: int = 5) -> float:
    """Median milliseconds of `work` in a CUDA graph, where launching takes no time; by the clock elsewhere."""
    if not torch.cuda.is_available():
        return by_clock(work)
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inside):
            work()
    return milliseconds(graph.replay, runs=runs, warm_up=2) / inside


def problem(B: int, heads: tuple[int, int, int], P: int, S: int) -> tuple[PrefixQuery, SuffixKeys, PrefixKeys]:
    """Random queries, suffixes and a prefix."""
    (H, G, D), device = heads, "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    pos = torch.arange(P + S, device=device)
    query = PrefixQuery(random(B, H, 1, D), pos[-1:].expand(B, 1), None, D**-0.5)
    own = SuffixKeys(
        random(B, G, S, D), random(B, G, S, D), pos[P:].expand(B, S).contiguous(), consecutive=False, padded=True
    )
    return query, own, PrefixKeys(random(1, G, P, D), random(1, G, P, D), pos[None, :P])


def rows(attempt: Attempt, small: bool) -> Iterator[dict[str, Any]]:
    """The prefix's part in TFLOP/s, and one token's whole attention against stock's kernel over the copied prefix."""
    torch.manual_seed(0)
    B, long, P, S = (6, 300, 100, 8) if small else (1024, 16 * K, 2 * K, 128)
    for heads in SHAPES:
        H, G, D = heads
        name = f"{H}/{G} heads d{D}, batch {B:,}"
        what = f"prefix part of decoding attention, {name}, prefix {long:,}: TFLOP/s"
        yield attempt(what, "TFLOP/s", lambda heads=heads, what=what: _product(what, B, heads, long))
        what = f"decoding attention, {name}, prefix {P:,}, suffix {S}: times faster than stock's kernel"
        yield attempt(what, "x", lambda heads=heads, what=what: _ratio(what, B, heads, P, S))


@torch.no_grad()
def _product(what: str, B: int, heads: tuple[int, int, int], P: int) -> dict[str, Any]:
    query, _, shared = problem(B, heads, P, 1)
    flops = 4 * B * heads[0] * P * heads[2]

    def rate(parts: int, kernel: str = "auto") -> float:
        piece, memo = cut(shared, parts)[0], query.memo.setdefault(parts, {})
        return flops / replayed(lambda: folded(query, piece, memo, kernel)) / 1e9

    chosen = parts_for(query, shared)
    value = rate(chosen)
    others: dict[str, Any] = {}
    for parts in SWEEP:
        if parts != chosen and parts <= P // 64:
            others[f"in {parts} parts"] = rate(parts)
    try:
        others["torch flash"] = rate(chosen, "cuda_flash")
    except Exception as error:  # not on this device
        print("torch flash:", error)
    return row(what, value, "TFLOP/s", bar=">= 250", beside={"parts": chosen}, detail=others)


@torch.no_grad()
def _ratio(what: str, B: int, heads: tuple[int, int, int], P: int, S: int) -> dict[str, Any]:
    query, own, shared = problem(B, heads, P, S)
    q, scale = query.q_BHLD, query.scale
    k, v = (
        torch.cat([one.expand(B, -1, -1, -1), mine], 2)
        for one, mine in ((shared.k_1GPD, own.k_BGSD), (shared.v_1GPD, own.v_BGSD))
    )
    module: Any = SimpleNamespace(num_key_value_groups=heads[0] // heads[1], is_causal=True)

    def stock() -> Tensor:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, None, scaling=scale)[0]  # type: ignore[no-any-return]

    def ours() -> Tensor:
        query.memo.clear()  # as in every step of a model
        return attend(query, own, [shared])

    off = float((ours().float() - stock().float()).norm() / stock().float().norm())
    if off > 2e-2:
        raise RuntimeError(f"the outputs differ by {off:.1e} (relative)")
    mine, theirs = replayed(ours), replayed(stock)
    beside: dict[str, Any] = {"hf_longctx, ms": mine, "stock, ms": theirs}
    if torch.cuda.is_available():
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
            try:
                with sdpa_kernel(backend):
                    beside[f"{name}, ms"] = replayed(
                        lambda: scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
                    )
            except RuntimeError as error:  # torch says so where a backend cannot
                print(f"{name}:", error)
    why = fused_unsupported_reason(query, own)
    detail = {"relative difference": off, "GB read by stock": 2 * k.numel() * k.element_size() / 1e9}
    return row(what, theirs / mine, "x", bar=">= 4", beside=beside, detail=detail, why=why and f"not fused: {why}")
