"""Sequence parallelism: one pack of documents on several ranks, and exact attention among them."""

from .flexible import Group, GroupCosts, plan_micro_batches, plan_step
from .layout import Layout, Piece
from .op import attention
from .ranks import Ranks

__all__ = ["Group", "GroupCosts", "Layout", "Piece", "Ranks", "attention", "plan_micro_batches", "plan_step"]
