"""Where gradients of weights are asked for under autocast: of the copies that it casts, which all tiles share.

Autocast casts a weight once and keeps the copy. A tile's gradient of the copy goes into the sum as it is; that of the
weight would be cast back first, once a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

CAST = "ToCopyBackward0"  # autograd's name for a tensor in another dtype


def cast_copies(out: Tensor, weights: Sequence[Tensor]) -> list[Tensor | GradientEdge]:
    """For each weight its cast copy in the graph of `out`, or itself where something else reads it too.

    Args:
        out: Computed from the weights under autocast, whose cache is on.
        weights: Leaves of its graph, which need gradients.

    Returns:
        What `torch.autograd.grad` takes as inputs.
    """
    readers: dict[Any, set[Any]] = {}  # of the result of a node, by the node
    waiting, seen = [out.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for before, _ in node.next_functions:
            readers.setdefault(before, set()).add(node)
            waiting.append(before)
    return [_copy_of(weight, readers) for weight in weights]


def _copy_of(weight: Tensor, readers: dict[Any, set[Any]]) -> Tensor | GradientEdge:
    found = readers.get(get_gradient_edge(weight).node, set())
    if len(found) != 1:
        return weight
    (reader,) = found
    return GradientEdge(reader, 0) if reader.name() == CAST else weight
