"""Dropout on ranks: of attention it is refused, and elsewhere ranks must not drop the same features of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from .groups import Groups


@dataclass(frozen=True, eq=False)
class Walked:
    """What each forward looks at in a model's modules, found in one walk: the host has little time for it.

    Args:
        attending: Modules that are told their number among the layers, and have a config.
        dropping: Those that drop features, with a rate above 0.
    """

    attending: list[Any]
    dropping: list[_DropoutNd]

    @classmethod
    def through(cls, model: nn.Module) -> Walked:
        """The modules of a model as they are now: adapters may have come."""
        attending: list[Any] = []
        dropping: list[_DropoutNd] = []
        for module in model.modules():
            own = vars(module)
            if "layer_idx" in own and "config" in own:
                attending.append(module)
            elif isinstance(module, _DropoutNd) and module.p > 0:
                dropping.append(module)
        return cls(attending, dropping)

    @property
    def attention_dropout(self) -> str | None:
        """Which attention module drops weights in training, and how many; None: none does."""
        for module in self.attending:
            rate = getattr(module, "attention_dropout", None)
            if isinstance(rate, (int, float)) and rate > 0:
                return f"{type(module).__name__} has attention_dropout={rate}"
        return None


@contextmanager
def dropping_apart(model: nn.Module, walked: Walked, groups: Groups) -> Iterator[None]:
    """Let ranks drop different features of their different tokens; their generators go on alike."""
    if not model.training or not walked.dropping:
        yield
        return
    seed = int(torch.randint(2**31, ()))  # of the host: the same on all ranks
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed + groups.rank)
        yield
