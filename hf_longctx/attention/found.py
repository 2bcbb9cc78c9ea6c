"""What look-ups have found as a branch of the softmax, and the gates that leave out what only scores by chance."""

# B batch, H query heads, G key/value heads, R = H / T, L queries, D head dim, T tables, K slots of a table
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache.slots import KeyValues
from ..cache.store import Store
from ..ops.attend import log_sum_exp
from ..ops.branch import Branch
from ..ops.found_tokens import FoundTokens
from ..ops.kernels.found import attend, unsupported_reason
from ..ops.masks import TopKeys
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
    if inputs.everything is not None:
        return GatheredTokens.of(inputs, inputs.everything, q_BHLD, table_BTLK).branch()
    mask = TopKeys(table_BTLK, shared=q_BHLD.shape[1] // table_BTLK.shape[1])
    return inputs.branch(mask, inputs.keys, q_rope=None, k_rope=None, q_BHLD=q_BHLD)


@dataclass(frozen=True, eq=False)
class GatheredTokens:
    """What the queries of a layer have found in a store, its keys and values gathered once.

    Args:
        inputs: Of the layer.
        store: Where it was found.
        q_BHLD: Queries, moved to where they read keys as they are.
        table_BTLK: The slots, -1 for none.
        k_BTLKD: Their keys.
        v_BTLKD: Their values.
    """

    inputs: AttentionInputs
    store: Store
    q_BHLD: Tensor
    table_BTLK: Tensor
    k_BTLKD: Tensor
    v_BTLKD: Tensor

    @classmethod
    def of(cls, inputs: AttentionInputs, store: Store, q_BHLD: Tensor, table_BTLK: Tensor) -> GatheredTokens:
        """The tokens of a table."""
        return cls(inputs, store, q_BHLD, table_BTLK, *store.take(table_BTLK))

    def branch(self, heads: Collection[int] | None = None) -> Branch:
        """The branch of these tokens, for all heads that share a table, or for these query heads alone."""
        B, T, L, K = self.table_BTLK.shape
        groups = self.inputs.keys.k.shape[1]
        k, v = (x.unflatten(1, (groups, -1)).flatten(2, 4) for x in (self.k_BTLKD, self.v_BTLKD))  # T / G L K slots
        # where each of them has come to stand
        at_TLK = torch.arange(k.shape[2], device=k.device).view(-1, L, K).repeat(groups, 1, 1)
        index_BTLK = at_TLK.masked_fill(self.table_BTLK < 0, -1)
        mask = TopKeys(index_BTLK, shared=self.q_BHLD.shape[1] // T)
        if heads is not None:
            none_BLK = torch.full_like(index_BTLK[:, 0], -1)
            every = [index_BTLK[:, h // mask.shared] if h in heads else none_BLK for h in range(T * mask.shared)]
            mask = TopKeys(torch.stack(every, 1))
        found = KeyValues(k, v, torch.zeros(B, k.shape[2], dtype=torch.long, device=k.device))
        return self.inputs.branch(mask, found, q_rope=None, k_rope=None, q_BHLD=self.q_BHLD)


def attend_at_once(
    inputs: AttentionInputs,
    branches: Callable[[], Iterable[Branch]],
    find: Callable[[Store], tuple[Tensor, Tensor]],
    margin: float | None,
    lowered: Callable[[], Tensor | None] = lambda: None,
) -> Tensor | None:
    """One new token per row, (B, 1, H, D), by a kernel that reads what it finds in pages; None where it cannot.

    Args:
        inputs: Of the layer.
        branches: The window, which comes first, and what else is seen besides the tokens found.
        find: Queries where they read what they find in a store, and its slots.
        margin: As in `FoundTokens`: a gate by the window's scores.
        lowered: What gives its `lowered_BH`.
    """
    store = inputs.everything
    if store is None or not inputs.looking or inputs.q_BHLD.shape[2] != 1 or inputs.decoder.kernel != "auto":
        return None
    pages = store.pages()
    if pages is None:
        return None
    others = [branch for branch in branches() if branch.k_BGSD.shape[2]]
    less = lowered()
    if unsupported_reason(others, pages, inputs.softcap, less is not None) is not None:
        return None
    q, table = find(store)
    found = FoundTokens(q[:, :, 0], table[:, :, 0], pages, margin, less)
    return attend(others, found, inputs.scale, inputs.softcap, inputs.sink_H)


@torch.no_grad()
def gated(found: GatheredTokens, window: Branch, margin: float) -> GatheredTokens:
    """Without the tokens whose score is not near all that a head sees in its window.

    A token stays if, for some head that shares the table, its score is at least the log-sum-exp of the window's scores
    less `margin`: of many tokens searched, some score well by chance alone.
    """
    inputs, table_BTLK = found.inputs, found.table_BTLK
    if not table_BTLK.is_cuda and not (table_BTLK >= 0).any():
        return found
    q_BTRLD = found.q_BHLD.unflatten(1, (table_BTLK.shape[1], -1))
    q_BTRLD = q_BTRLD.to(torch.promote_types(q_BTRLD.dtype, torch.float32))
    scores_BTRLK = torch.einsum("btrld,btlkd->btrlk", q_BTRLD, found.k_BTLKD.to(q_BTRLD.dtype)) * inputs.scale
    whole_BHL = log_sum_exp(
        window, scale=inputs.scale, kernel=inputs.decoder.kernel, strict=False, softcap=inputs.softcap
    )
    whole_BTRL = whole_BHL.unflatten(1, (table_BTLK.shape[1], -1))
    above_BTRLK = soft_capped(scores_BTRLK, inputs.softcap) - whole_BTRL[..., None]
    return dataclasses.replace(found, table_BTLK=table_BTLK.masked_fill(above_BTRLK.amax(2) < -margin, -1))


def lowered_but(inputs: AttentionInputs, heads: list[int]) -> Tensor:
    """(1, H) fp32: 0 for these heads, inf for the others, which find nothing. The same in every forward."""
    q_BHLD = inputs.q_BHLD
    count, device = q_BHLD.shape[1], q_BHLD.device

    def make() -> Tensor:
        lowered_1H = torch.full((1, count), float("inf"), device=device)
        for head in heads:  # no copy from the host, which a graph could not record
            lowered_1H[:, head] = 0
        return lowered_1H

    return inputs.decoder.constants.get(inputs.decoder.rotary, ("lowered", *heads, count, device), make)


def asked_by(inputs: AttentionInputs, heads: list[int], per: str) -> Tensor:
    """(T,) int32: 1 for the tables that these heads read, 0 for the others. The same in every forward."""
    count, groups, device = inputs.q_BHLD.shape[1], inputs.keys.k.shape[1], inputs.q_BHLD.device
    shared = count // groups if per == "group" else 1

    def make() -> Tensor:
        asked_T = torch.zeros(count // shared, dtype=torch.int32, device=device)
        for table in {head // shared for head in heads}:  # no copy from the host, as in `lowered_but`
            asked_T[table] = 1
        return asked_T

    return inputs.decoder.constants.get(inputs.decoder.rotary, ("asked", *heads, count, shared, device), make)


def searched(q_pos_BL: Tensor, near: int, after_B: Tensor) -> Tensor:
    """How many tokens each query has searched, (B, L): the positions after the first tokens and `near` before it."""
    return (q_pos_BL - near - after_B[:, None]).clamp(min=0)
