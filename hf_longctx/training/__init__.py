"""Training with stock trainers: their data, losses and memory, and sequence parallelism for accelerate and Trainer."""

from .accelerate import SequenceParallelConfig
from .curriculum import BatchSamplerMixin, BatchSamplerTrainer, BucketSampler, Decomposed, decompose
from .losses import LossWeightingMixin, LossWeightingTrainer
from .memory import TrainingMemory, TrainingMemoryMixin
from .packing import PackCollator, Packs, chat_documents, pack, read_chats
from .preflight import PreflightMixin
from .trainer import SequenceParallelMixin, SequenceParallelTrainer

__all__ = [
    "BatchSamplerMixin",
    "BatchSamplerTrainer",
    "BucketSampler",
    "Decomposed",
    "LossWeightingMixin",
    "LossWeightingTrainer",
    "PackCollator",
    "Packs",
    "PreflightMixin",
    "SequenceParallelConfig",
    "SequenceParallelMixin",
    "SequenceParallelTrainer",
    "TrainingMemory",
    "TrainingMemoryMixin",
    "chat_documents",
    "decompose",
    "pack",
    "read_chats",
]
