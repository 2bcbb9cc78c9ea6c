"""FlexSP (Wang et al. 2024): each step's documents in groups of ranks of unequal size, long ones in large groups."""

from .batches import plan_micro_batches
from .costs import GroupCosts
from .plan import Group, plan_step

__all__ = ["Group", "GroupCosts", "plan_micro_batches", "plan_step"]
