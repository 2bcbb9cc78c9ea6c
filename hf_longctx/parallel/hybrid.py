"""Hybrid: Ulysses among the ranks of a host, ring, all-gather or halo among hosts, on a 2-D mesh of ranks.

Fang and Zhao, 2024 (arXiv 2405.07719). Ranks of a host follow each other, so rank r is number r % inner in host
r // inner. A zigzag over all ranks is one over hosts.
"""

from __future__ import annotations

from collections.abc import Callable

from .exchange import Exchange
from .layout import Layout
from .peers import Peers
from .ulysses import UlyssesExchange


def hybrid(layout: Layout, outer: Peers, inner: Peers, outside: Callable[[Layout, Peers], Exchange]) -> UlyssesExchange:
    """Heads for rows in the group `inner`, and with these heads the exchange `outside` in the group `outer`.

    Args:
        layout: Of all ranks.
        outer: The ranks with this rank's number in every host.
        inner: The ranks of this rank's host.
        outside: Makes an exchange from the layout of hosts and `outer`.
    """
    return UlyssesExchange(layout, inner, outside(layout.grouped(inner.size), outer), outer.rank)
