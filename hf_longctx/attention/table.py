"""Tables of sines and cosines without an end, for models that look theirs up (GPT-J, CodeGen)."""

# B batch, L tokens, R rotated dims
from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import attention_layers, has_table, rotary_of
from .subclass import subclass

THETA = 10000  # of both


def sines_and_cosines(pos_BL: Tensor, dims: int) -> Tensor:
    """What such a table has in the rows of these positions, (B, L, R): sines, then cosines."""
    inv_freq = 1.0 / (THETA ** (torch.arange(0, dims, 2, dtype=torch.int64, device=pos_BL.device) / dims))
    angle = pos_BL[..., None].float() * inv_freq
    return torch.cat((torch.sin(angle), torch.cos(angle)), -1)


def rotary_embedding(decoder: nn.Module) -> Any:
    """The rotary embedding of a decoder; the angles of their tables where its attention modules have these."""
    rotary: Any = rotary_of(decoder)
    inside = has_table(rotary) and rotary in attention_layers(decoder)
    return Angles(rotary.embed_positions) if inside else rotary


class Angles(nn.Module):
    """The angles of tables that attention modules have each for themselves."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.dims = table.shape[1]

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, L, R / 2) in the dtype of `x`."""
        sin, cos = sines_and_cosines(position_ids, self.dims).to(x.dtype).chunk(2, -1)
        return cos, sin


class _Rows:
    """The part of a table that is looked up, in the place of the rotary embedding."""

    def __init__(self, embed_positions: Tensor) -> None:
        self.embed_positions = embed_positions


@functools.cache
def endless(stock: Any) -> type[nn.Module]:
    """The subclass of a rotary embedding with a table that computes the rows which it looks up."""

    def forward(self: Any, x: Tensor, position_ids: Tensor) -> Any:
        rows = sines_and_cosines(position_ids, self.embed_positions.shape[1])
        table = _Rows(rows.flatten(0, -2))
        index = torch.arange(position_ids.numel(), device=position_ids.device)
        return stock.forward(table, x, index.view(position_ids.shape))

    return subclass(endless, stock, "Endless", forward)
