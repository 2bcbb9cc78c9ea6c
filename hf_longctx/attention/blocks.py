"""Looking blocks of neighbouring tokens up by a description of each, as InfLLM and Quest do.

Blocks are counted from the first token behind the first ones, in the order of the text, so they do not depend on how a
text is cut, padded or cached. A query looks up blocks that lie beyond its window as a whole, whose descriptions hold
nothing that it must not see; what has left its window of a block at the edge is always among its tokens.
"""

# B batch, H query heads, G key/value heads, L queries, S slots, D head dim, M blocks, N tokens of a block, T = G or H
# tables, K blocks or slots of a table
from __future__ import annotations

import torch
from torch import Tensor

from ..cache.slots import KeyValues
from ..cache.store import Store
from .lookup import choose


@torch.no_grad()
def choose_blocks(
    q_BHLD: Tensor,
    q_pos_BL: Tensor,
    keys: KeyValues,
    *,
    k: int,
    size: int,
    near: int,
    after_B: Tensor,
    by: str = "mean",
    per: str = "group",
) -> Tensor:
    """For each query the slots of its best `k` blocks and of the block at its window's edge, (B, T, L, K); -1: none.

    Args:
        q_BHLD: Queries, moved to where they read keys that are left as they are.
        q_pos_BL: Their positions; -1 for padding, which looks up nothing.
        keys: All of the text, in its order.
        k: How many blocks.
        size: Tokens of a block.
        near: Tokens nearer than this are not looked up.
        after_B: Nor are those up to this position of a row: the first tokens.
        by: What describes a block: "mean", the mean of its keys; "bounds", the least and the largest value of each
            channel, which bound the score of every key of the block (Quest).
        per: As in `choose`.
    """
    slots_BMN = _blocks(keys.pos, after_B, size)
    end_BM = keys.pos.gather(1, slots_BMN[..., -1].clamp(min=0)).masked_fill(slots_BMN[..., -1] < 0, -1)
    if by == "bounds":
        q_BHLD = torch.cat([q_BHLD.clamp(min=0), q_BHLD.clamp(max=0)], -1)
    described = _described(keys.k, slots_BMN, by).to(q_BHLD.dtype)
    store = Store.of(KeyValues(described, described, end_BM))
    best_BTLK = choose(q_BHLD, q_pos_BL, store, k=k, near=near, after_B=after_B, per=per)
    tables = best_BTLK.shape[1]
    edge_BLN = _edge(slots_BMN, end_BM, keys.pos, q_pos_BL - near).int()
    # a table has a slot for each token of the blocks of each query: half the bytes
    return torch.cat([_slots(slots_BMN.int(), best_BTLK), edge_BLN[:, None].expand(-1, tables, -1, -1)], -1)


def _blocks(pos_BS: Tensor, after_B: Tensor, size: int) -> Tensor:
    """The slots of every block, (B, M, N), -1 where a block at the end of a row has no token yet."""
    B, S = pos_BS.shape
    counted_BS = (pos_BS > after_B[:, None]) & (pos_BS >= 0)
    M = max(-(-S // size), 1)
    # what is not counted is written behind the last block, and cut off
    place_BS = (counted_BS.cumsum(1) - 1).masked_fill(~counted_BS, M * size)
    slots = torch.full((B, M * size + 1), -1, dtype=torch.long, device=pos_BS.device)
    slots.scatter_(1, place_BS, torch.arange(S, device=pos_BS.device).expand(B, -1))
    return slots[:, :-1].view(B, M, size)


def _described(k_BGSD: Tensor, slots_BMN: Tensor, by: str) -> Tensor:
    """(B, G, M, D), or (B, G, M, 2 D) for bounds, largest values first. Blocks that are not full hold anything."""
    B, G, _, D = k_BGSD.shape
    at = slots_BMN.clamp(min=0).view(B, 1, -1, 1).expand(-1, G, -1, D)
    keys_BGMND = k_BGSD.gather(2, at).unflatten(2, slots_BMN.shape[1:])
    if by == "mean":
        return keys_BGMND.mean(3)
    return torch.cat([keys_BGMND.amax(3), keys_BGMND.amin(3)], -1)


def _slots(slots_BMN: Tensor, best_BTLK: Tensor) -> Tensor:
    """The slots of chosen blocks, (B, T, L, K N)."""
    rows = torch.arange(len(slots_BMN), device=slots_BMN.device).view(-1, 1, 1, 1)
    chosen = slots_BMN[rows, best_BTLK.clamp(min=0)]
    return chosen.masked_fill((best_BTLK < 0)[..., None], -1).flatten(3)


def _edge(slots_BMN: Tensor, end_BM: Tensor, pos_BS: Tensor, last_BL: Tensor) -> Tensor:
    """The slots up to the position `last` of the block that is not yet beyond it as a whole, (B, L, N - 1)."""
    full_BM = torch.where(end_BM < 0, torch.iinfo(torch.long).max, end_BM)
    number_BL = torch.searchsorted(full_BM, last_BL.contiguous(), right=True)
    rows = torch.arange(len(slots_BMN), device=slots_BMN.device)[:, None]
    M = slots_BMN.shape[1]
    # of N tokens beyond it the block would be one to choose
    slots_BLN = slots_BMN[rows, number_BL.clamp(max=M - 1)][..., :-1]
    pos_BLN = pos_BS[rows[..., None], slots_BLN.clamp(min=0)]
    gone = (slots_BLN >= 0) & (pos_BLN <= last_BL[..., None]) & (number_BL < M)[..., None]
    return slots_BLN.masked_fill(~gone, -1)
