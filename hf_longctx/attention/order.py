"""The positions of a forward: their order, whether the cache still has the ones it needs, what a mask hides."""

# B batch, L queries, S cached tokens
from __future__ import annotations

import torch
from torch import Tensor

from ..cache.base import UnrotatedLayer


def show_cached(layers: list[UnrotatedLayer], mask_BS: Tensor) -> None:
    """Hide and show cached tokens as a mask says. Layers of one layout hold the same tokens: one of each is asked."""
    kinds = {(layer.layout, len(layer.slots)): layer for layer in layers if layer.is_initialized}
    if torch.compiler.is_compiling() or not all(bool(layer.shows(mask_BS)) for layer in kinds.values()):
        for layer in layers:
            layer.show(mask_BS)


def rises(pos: Tensor, kept: Tensor | None) -> Tensor:
    """Positions decide who sees whom: two tokens of a row at one position, or out of order, would see the future."""
    before = pos.cummax(1).values[:, :-1]
    falls = ((pos[:, 1:] >= 0) & (pos[:, 1:] <= before)).any()
    if kept is not None and kept.shape[1]:
        falls = falls | ((pos >= 0) & (pos <= kept.amax(1, keepdim=True))).any()
    return ~falls


def missing(layer: UnrotatedLayer, pos: Tensor) -> Tensor:
    """(B,): rows that continue where their cache has dropped tokens that they would see."""
    last = torch.iinfo(torch.long).max
    return layer.misses(torch.where(pos < 0, last, pos).amin(1)).to(pos.device)


def is_regular(pos: Tensor) -> bool:
    """Are the real positions of every row consecutive? Windows by index, as in GPU kernels, are then by position."""
    real = pos >= 0
    rank = real.long().cumsum(1) - 1
    start = torch.where(real, pos - rank, -1).amax(1, keepdim=True)
    return bool(((pos == start + rank) | ~real).all())


def check_tokens(hidden: Tensor) -> None:
    """ValueError for a forward without a token, or without rows: torch would say something of a dimension."""
    if hidden.ndim != 3 or not hidden.shape[:2].numel():
        more = " One text is a batch of one row: input_ids[None]." if hidden.ndim == 2 else ""
        raise ValueError(
            f"the layers were given a tensor of shape {tuple(hidden.shape)}: expected (rows, tokens, hidden size), of "
            f"input_ids of shape (rows, tokens) with at least one token.{more}"
        )


def check_rows(rows: int, layers: list[UnrotatedLayer]) -> None:
    """ValueError for a cache of another number of rows than the batch."""
    held = {len(layer.keys) for layer in layers if layer.is_initialized and layer.keys is not None} - {rows}
    if held:
        raise ValueError(
            f"a batch of {rows} rows, and a cache that has read {held.pop()}: expected as many. Give the rows that the "
            f"cache has read, choose among its own by cache.batch_select_indices(...), or start with a new cache."
        )


def positions_of_another_length(pos: Tensor, length: int) -> str:
    """What is wrong with position ids that are not as many as the tokens."""
    return f"position_ids of shape {tuple(pos.shape)}: {length} tokens are read. Pass one position for each of them."


def whole_positions(pos: Tensor, name: str) -> Tensor:
    """Position ids of any type as 64-bit integers; ValueError for fractions, which no mask can count by."""
    if pos.dtype == torch.long:
        return pos
    whole = pos.long()
    wrong = (
        f"position_ids of {pos.dtype} that are no whole numbers: {name} decides by them which tokens are in a window. "
        f"Pass one whole number for each token. To read positions closer together, apply RopeScaling(type='linear', "
        f"factor=...) as well."
    )
    if pos.is_floating_point() and torch.compiler.is_compiling():
        torch._assert_async((whole == pos).all(), wrong)
    elif pos.is_floating_point() and not bool((whole == pos).all()):
        raise ValueError(wrong)
    return whole


def below_zero(pos: Tensor, name: str) -> str:
    """What is wrong with positions below 0, by which hidden tokens are told."""
    return (
        f"position_ids of {int(pos.min())} for a token that is read: {name} takes positions of 0 and more. Raise all "
        f"positions of a row alike, which changes no distance, and hide padding by attention_mask."
    )
