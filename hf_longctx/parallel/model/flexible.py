"""`Flexible`: what `degree="auto"` needs in each forward. Every rank plans the batch alike, without an exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ..flexible.costs import GroupCosts, rough_costs
from ..flexible.laid_out import laid_out
from ..flexible.plan import Group, plan_step
from ..flexible.solver import solver_version
from .choosing import Geometry
from .division import Division
from .groups import Groups, ranks_of_a_host
from .subgroups import subgroups


@dataclass(frozen=True, eq=False)
class Flexible:
    """What is the same for all batches.

    Args:
        groups: Those of this process, by their size, and how each exchanges.
        planned: From the lengths of documents to the groups of all ranks.
        cut: Which documents a group cuts.
        capacity: The most tokens of a rank; None: as many as there are.
    """

    groups: dict[int, tuple[Groups, str]]
    planned: Callable[[Sequence[int]], list[Group]]
    cut: str | int
    capacity: int | None

    @classmethod
    def of(cls, settings: Any, kind: str, geometry: Geometry, device: torch.device) -> Flexible:
        """Make the groups and read the costs. Every process calls it; all raise if they do not agree."""
        costs, capacity = agreed_costs(settings, device), settings.capacity
        planned = partial(plan_step, ranks=dist.get_world_size(), costs=costs, capacity=capacity)
        return cls(subgroups(kind, geometry), planned, settings.cut, capacity)

    def divide(self, lengths: Sequence[int]) -> Division:
        """Plan a batch: the same on every rank. ValueError, on every rank, if it fits no groups."""
        plan = self.planned(lengths)
        layout, own = laid_out(lengths, plan, self.cut, self.capacity)
        (number,) = [n for n, group in enumerate(plan) if dist.get_rank() in group.ranks]
        groups, kind = self.groups[len(plan[number].ranks)]
        return Division(layout, own[number], groups, kind)

    def __deepcopy__(self, memo: Any) -> Flexible:
        return self


def agreed_costs(settings: Any, device: torch.device) -> GroupCosts:
    """The costs of the switch's file, or rough ones; ValueError on every rank if one cannot read them or has others."""
    ranks = dist.get_world_size()
    found: GroupCosts | None = None
    error = ""
    try:
        if settings.calibration is None:
            found = rough_costs(ranks, ranks_of_a_host())
        else:
            found = GroupCosts.read(settings.calibration, 2 ** (ranks.bit_length() - 1), card(device))
    except ValueError as wrong:
        error = str(wrong)
    everywhere: list[Any] = [None] * ranks
    dist.all_gather_object(everywhere, (error, found, settings.capacity, solver_version()))
    for rank, (said, *plans) in enumerate(everywhere):
        if said:
            raise ValueError(error or f"rank {rank}: {said}")
        if plans != list(everywhere[0][1:]):
            raise ValueError(
                f"degree='auto': rank {rank} would plan other groups than rank 0: costs, capacity and version of scipy "
                f"are {plans} and {list(everywhere[0][1:])}. Give all ranks the same."
            )
    assert found is not None
    return found


def card(device: torch.device) -> str:
    """The name of a device, by which costs are told apart."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
