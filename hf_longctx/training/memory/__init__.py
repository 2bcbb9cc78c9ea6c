"""The memory ladder: chunked loss, tiled MLPs and kept attention, each by itself or together: `TrainingMemory`."""

from .settings import TrainingMemory
from .trainer import TrainingMemoryMixin

__all__ = ["TrainingMemory", "TrainingMemoryMixin"]
