"""The fast path of `edit`: moving keys and reading tokens as one recorded CUDA graph. `edit` is right without it."""

from .fast import forget, from_graph, is_checked

__all__ = ["forget", "from_graph", "is_checked"]
