"""Chance on ranks: dropout of attention is refused, and whatever else is drawn, ranks draw apart for their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .groups import Groups

NEFTUNE = "neftune_noise_alpha"  # of embeddings to which Trainer adds noise (neftune_noise_alpha=)


@dataclass(frozen=True, eq=False)
class Walked:
    """What each forward looks at in a model's modules, found in one walk: the host has little time for it.

    Args:
        attending: Modules that are told their number among the layers, and have a config.
        noisy: Embeddings to which Trainer adds noise.
    """

    attending: list[Any]
    noisy: list[Any]

    @classmethod
    def through(cls, model: nn.Module) -> Walked:
        """The modules of a model as they are now: adapters may have come."""
        attending: list[Any] = []
        noisy: list[Any] = []
        for module in model.modules():
            own = vars(module)
            if "layer_idx" in own and "config" in own:
                attending.append(module)
            elif NEFTUNE in own:
                noisy.append(module)
        return cls(attending, noisy)

    @property
    def attention_dropout(self) -> str | None:
        """Which attention module drops weights in training, and how many; None: none does."""
        for module in self.attending:
            rate = getattr(module, "attention_dropout", None)
            if isinstance(rate, (int, float)) and rate > 0:
                return f"{type(module).__name__} has attention_dropout={rate}"
        return None


@contextmanager
def drawing_apart(model: nn.Module, groups: Groups) -> Iterator[None]:
    """Let ranks draw different numbers for their different tokens: dropout, noise, routes. Generators go on alike.

    Where nothing is drawn, they are left as they were.
    """
    if not model.training:
        yield
        return
    before = torch.get_rng_state()
    seed = int(torch.randint(2**31, ()))  # of the host: the same on all ranks
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed + groups.rank)
        fresh = _states(devices)
        yield
        drawn = any(not torch.equal(old, new) for old, new in zip(fresh, _states(devices), strict=True))
    if not drawn:
        torch.set_rng_state(before)


def _states(devices: list[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


@contextmanager
def noise_of_rows(walked: Walked, width: int, rows: int) -> Iterator[None]:
    """Let noise that goes by the length of a row (NEFTune: alpha / sqrt(length x dim)) be that of the batch.

    Args:
        walked: The model's modules.
        width: Tokens of a row of the batch.
        rows: Tokens that this rank computes, in one row.
    """
    alphas = [getattr(module, NEFTUNE) for module in walked.noisy]
    try:
        for module, alpha in zip(walked.noisy, alphas, strict=True):
            setattr(module, NEFTUNE, alpha * (rows / width) ** 0.5)
        yield
    finally:
        for module, alpha in zip(walked.noisy, alphas, strict=True):
            setattr(module, NEFTUNE, alpha)
