"""Sequence parallelism: one pack of documents on several ranks, and exact attention among them."""

from .layout import Layout, Piece
from .op import attention
from .ranks import Ranks

__all__ = ["Layout", "Piece", "Ranks", "attention"]
