"""Losses that weigh each token, or each document, alike over all processes and accumulation steps."""

from .trainer import LossWeightingMixin, LossWeightingTrainer

__all__ = ["LossWeightingMixin", "LossWeightingTrainer"]
