"""Dataset Decomposition (Pouransari et al. 2024): documents cut into powers of two, and one length a step."""

from .odds import CURRICULA
from .pieces import Decomposed, decompose
from .sampler import BucketSampler
from .trainer import BatchSamplerMixin, BatchSamplerTrainer

__all__ = ["CURRICULA", "BatchSamplerMixin", "BatchSamplerTrainer", "BucketSampler", "Decomposed", "decompose"]
