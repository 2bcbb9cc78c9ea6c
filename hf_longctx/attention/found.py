"""What look-ups have found as a branch of the softmax, and the gate that leaves out what only scores by chance."""

# B batch, H query heads, G key/value heads, R = H / T, L queries, D head dim, T tables, K slots of a table
from __future__ import annotations

import torch
from torch import Tensor

from ..cache.slots import KeyValues
from ..cache.store import Store
from ..ops.attend import log_sum_exp
from ..ops.branch import Branch
from ..ops.kernels.found import unsupported_reason
from ..ops.masks import TopKeys
from ..ops.pages import Pages
from ..ops.softcap import soft_capped
from .inputs import AttentionInputs


def reading_at(inputs: AttentionInputs, distance: int) -> Tensor:
    """Queries (B, H, L, D) moved so that they read keys, left as they are, at a distance; there are more keys."""
    moved = inputs.relative(distance)
    return inputs.q_BHLD if moved is None else moved(inputs.q_BHLD)


def found_branch(inputs: AttentionInputs, q_BHLD: Tensor, table_BTLK: Tensor) -> Branch:
    """The branch of the tokens in these slots, for queries that are moved to where they read keys as they are.

    The slots are those of `inputs.everything`, or, where the cache keeps nothing apart, of `inputs.keys`.
    """
    heads = q_BHLD.shape[1]
    if inputs.everything is None:
        index_BHLK = table_BTLK.repeat_interleave(heads // table_BTLK.shape[1], 1)
        return inputs.branch(TopKeys(index_BHLK), inputs.keys, q_rope=None, k_rope=None, q_BHLD=q_BHLD)
    B, T, L, K = table_BTLK.shape
    k, v = inputs.everything.take(table_BTLK)
    groups = inputs.keys.k.shape[1]
    k, v = (x.unflatten(1, (groups, -1)).flatten(2, 4) for x in (k, v))  # (B, G, T / G L K, D)
    # where each of them has come to stand
    at_TLK = torch.arange(k.shape[2], device=k.device).view(-1, L, K).repeat(groups, 1, 1)
    index_BTLK = at_TLK.masked_fill(table_BTLK < 0, -1)
    found = KeyValues(k, v, torch.zeros(B, k.shape[2], dtype=torch.long, device=k.device))
    index_BHLK = index_BTLK.repeat_interleave(heads // T, 1)
    return inputs.branch(TopKeys(index_BHLK), found, q_rope=None, k_rope=None, q_BHLD=q_BHLD)


def pages_of_step(inputs: AttentionInputs, branches: list[Branch]) -> Pages | None:
    """Where one new token per row finds tokens, if kernels can do its branches and the found tokens at once."""
    store = inputs.everything
    if store is None or inputs.q_BHLD.shape[2] != 1 or inputs.decoder.kernel != "auto":
        return None
    pages = store.pages()
    return None if pages is None or unsupported_reason(branches, pages, inputs.softcap) is not None else pages


@torch.no_grad()
def gated(
    inputs: AttentionInputs, store: Store, q_BHLD: Tensor, table_BTLK: Tensor, window: Branch, margin: float = 0.0
) -> Tensor:
    """The table with -1 for slots whose score is not near all that a head sees in its window.

    A token stays if, for some head that shares the table, its score is at least the log-sum-exp of the window's scores
    less `margin`: of many tokens searched, some score well by chance alone.
    """
    if not table_BTLK.is_cuda and not (table_BTLK >= 0).any():
        return table_BTLK
    T = table_BTLK.shape[1]
    keys_BTLKD = store.take_keys(table_BTLK)
    q_BTRLD = q_BHLD.unflatten(1, (T, -1)).to(torch.promote_types(q_BHLD.dtype, torch.float32))
    scores_BTRLK = torch.einsum("btrld,btlkd->btrlk", q_BTRLD, keys_BTLKD.to(q_BTRLD.dtype)) * inputs.scale
    whole_BHL = log_sum_exp(
        window, scale=inputs.scale, kernel=inputs.decoder.kernel, strict=False, softcap=inputs.softcap
    )
    above = soft_capped(scores_BTRLK, inputs.softcap) - whole_BHL.unflatten(1, (T, -1))[..., None]
    return table_BTLK.masked_fill(above.amax(2) < -margin, -1)
