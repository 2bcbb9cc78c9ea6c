"""What `kind="auto"` takes: by heads, hosts, windows and length. Each decision comes with its reason, for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..layout import Layout
from .groups import ranks_inside, ranks_of_a_host

# pairs x heads x head dim of a rank's attention to the keys of one other, from which a ring hides its exchange. On two
# H200s, forward, forward again and backward by all-gather and by ring: 16k, 32/8 heads of 64 (2^36), 7.5 and 7.1 ms;
# 16k, 9/3 heads (2^34.2), 3.6 and 4.1; 32k, 9/3 heads (2^36.2), 8.2 and 7.6
WORK = 2**35
# gathered keys and values of one layer, with their fp32 gradients, beyond which a ring is taken for its memory
MOST_BYTES = 2 * 2**30
KEY_BYTES = 2 + 4  # a number in bf16, and its gradient


@dataclass(frozen=True)
class Geometry:
    """What the choice depends on in a model: query heads, key/value heads, their dim, layers with a window, layers."""

    heads: int
    kv_heads: int
    head_dim: int
    windows: int
    layers: int


def across_hosts(degree: int, geometry: Geometry) -> bool:
    """Is it worth exchanging heads inside hosts, since a group is spread over several?"""
    return degree > ranks_of_a_host() and ranks_inside(degree, geometry.heads) > 1


def kind_of(kind: str, degree: int, geometry: Geometry) -> str:
    """What is taken for groups of so many ranks, whatever the batch: "auto" leaves it to `choose`."""
    return "hybrid" if kind == "auto" and degree > 1 and across_hosts(degree, geometry) else kind


def choose(layout: Layout, geometry: Geometry) -> tuple[str, str]:
    """Gather or ring, and why, for one batch on ranks that exchange keys. All ranks choose the same."""
    if not layout.shared:
        return "gather", "every document is whole on one rank, so nothing is exchanged"
    if geometry.windows == geometry.layers:
        return "gather", "all layers have a window, so that only the keys just before a piece are exchanged"
    lengths = [layout.lengths[document] for document in layout.shared]
    dims = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    return by_length(lengths, layout.ranks, *dims)


def by_length(lengths: Sequence[int], ranks: int, queries: int, keys: int) -> tuple[str, str]:
    """Gather or ring, and why, for documents that all ranks share, from the dims of all query and of all key heads."""
    tokens = sum(lengths)
    size = tokens * 2 * keys * KEY_BYTES
    work = sum(length**2 for length in lengths) // 2 // ranks**2 * queries  # half of all pairs are causal
    shown = f"the keys of {tokens} tokens take {size / 2**20:.0f} MiB a layer with their gradients"
    if work >= WORK:
        return "ring", f"{shown}, and attention takes longer than their way from rank to rank"
    if size > MOST_BYTES:
        return "ring", f"{shown}, more than {MOST_BYTES // 2**20} MiB, and a ring keeps the keys of one rank at a time"
    return "gather", f"{shown}, so that one exchange is over sooner than several"
