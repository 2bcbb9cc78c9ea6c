"""Training with stock trainers: sequence parallelism for accelerate, Trainer and what derives from it."""

from .accelerate import SequenceParallelConfig
from .memory import TrainingMemory, TrainingMemoryMixin
from .trainer import SequenceParallelMixin, SequenceParallelTrainer

__all__ = [
    "SequenceParallelConfig",
    "SequenceParallelMixin",
    "SequenceParallelTrainer",
    "TrainingMemory",
    "TrainingMemoryMixin",
]
