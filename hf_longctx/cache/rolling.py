"""From ordered layers to rings that share their positions."""

# B batch, G key/value heads, N columns of the ring, D head dim
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .ring import Ring

ROOM = 1024  # columns of the smallest ring


def roll(layers: Sequence[Any]) -> bool:
    """Turn ordered `SinkWindowLayer`s of one cache into rings that share their positions. False if they cannot (yet).

    The sinks must be complete in every row: a ring never adds to them. Nor does it tell a hidden token that a mask may
    show again from one whose position was read again: the one keeps its place, the other gives it up. A text shorter
    than the window gets columns for twice its length, and more when these are full.
    """
    rings = [layer.ring for layer in layers if layer.ring is not None]
    if len(rings) == len(layers):
        if not any(ring.must_grow for ring in rings):
            return True
        for layer in layers:
            layer.to_order()
    if any(not layer.is_initialized or layer.ring is not None or not layer.has_all_sinks for layer in layers):
        return False
    sinks = {layer.sinks.pos.device: layer.sinks for layer in layers if layer.n_first and layer.sinks is not None}
    if any(layer.padded for layer in layers) and any(bool((some.pos < 0).any()) for some in sinks.values()):
        return False
    masked = {(slots.pos.device, len(slots)): slots for slots in (layer.slots for layer in layers if layer.masked)}
    if any(bool((slots.alive() & (slots.pos < 0)).any()) for slots in masked.values()):
        return False
    shared: dict[tuple[torch.device, int, int], Ring] = {}
    for layer in layers:
        kept, most = layer.slots, layer.n_last + 1
        device, size = kept.pos.device, min(most, max(ROOM, 2 * len(kept)))
        ring = shared.get((device, size, most))
        if ring is None:
            ring = Ring(len(kept.pos), size, device, start=len(kept), read=layer.seen, most=most)
            shared[device, size, most] = ring
            ring.pos_BN[:, : len(kept)] = kept.pos
            assert kept.column is not None
            ring.column_BN[:, : len(kept)] = kept.column
            if layer.evicted_B is not None:
                ring.evicted_B.copy_(layer.evicted_B)
        layer.to_ring(ring)
    return True
