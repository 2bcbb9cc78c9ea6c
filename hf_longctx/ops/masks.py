"""Which (query, key) pairs exist, as values: by position, whatever the kernel."""

# B batch, H query heads, L queries, S keys, K selected keys of a query
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Causal:
    """A query sees every key at or before its own position."""

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        return q_pos_BL[:, :, None] >= k_pos_BS[:, None, :]

    def span(self, q_low: int, q_high: int) -> tuple[int, int]:
        """The lowest and the highest key position that queries at q_low..q_high can see."""
        return 0, q_high


@dataclass(frozen=True)
class Window:
    """A query sees the `size` nearest positions up to its own: distances 0 to size - 1."""

    size: int

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        distance = q_pos_BL[:, :, None] - k_pos_BS[:, None, :]
        return (distance >= 0) & (distance < self.size)

    def span(self, q_low: int, q_high: int) -> tuple[int, int]:
        return q_low - self.size + 1, q_high


@dataclass(frozen=True)
class BeyondWindow:
    """A query sees the positions that a `Window` of the same size leaves out: distances of `size` and more."""

    size: int

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        return q_pos_BL[:, :, None] - k_pos_BS[:, None, :] >= self.size

    def span(self, q_low: int, q_high: int) -> tuple[int, int]:
        return 0, q_high - self.size


@dataclass(frozen=True)
class Full:
    """A query sees every key there is."""

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        return (q_pos_BL[:, :, None] >= 0) & (k_pos_BS[:, None, :] >= 0)

    def span(self, q_low: int, q_high: int) -> tuple[int, int]:
        return 0, torch.iinfo(torch.long).max


@dataclass(frozen=True, eq=False)
class TopKeys:
    """A query of a head sees the keys at these slots: `index` is (B, H, L, K), -1 where there is none."""

    index_BHLK: Tensor


Mask = Causal | Window | BeyondWindow | Full | TopKeys


def pairs(visible: Causal | Window | BeyondWindow | Full, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
    """`visible` as a (B, L, S) mask, empty slots and rows left out."""
    real = (q_pos_BL[:, :, None] >= 0) & (k_pos_BS[:, None, :] >= 0)
    return real & visible.pairs(q_pos_BL, k_pos_BS)
