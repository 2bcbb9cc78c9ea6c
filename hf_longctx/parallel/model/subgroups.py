"""The process groups that `degree="auto"` can need: made once, by all processes in one order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from .choosing import Geometry, kind_of
from .groups import Groups, made_once, ranks_inside


def subgroups(kind: str, geometry: Geometry) -> dict[int, tuple[Groups, str]]:
    """The groups that this process is in, by their size, a power of two, and how each exchanges."""
    world, rank = dist.get_world_size(), dist.get_rank()
    found = {1: (Groups(), "gather")}
    for size in (2**k for k in range(1, world.bit_length())):
        how = kind_of(kind, size, geometry)
        for start in range(0, world - size + 1, size):
            members = range(start, start + size)
            whole = _group(members)
            groups = Groups(whole)
            if how == "hybrid":
                inside = ranks_inside(size, geometry.heads)
                inner = [_group(members[first : first + inside]) for first in range(0, size, inside)]
                outer = [_group(members[first::inside]) for first in range(inside)]
                own = (rank - start) % size
                groups = Groups(whole, outer[own % inside], inner[own // inside])
            if rank in members:
                found[size] = groups, how
    return found


def _group(members: Sequence[int]) -> Any:
    """The process group of some ranks."""
    return made_once(tuple(members), lambda: dist.new_group(list(members)))
