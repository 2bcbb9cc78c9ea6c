"""Which tokens far behind an edit are off most? Those that repeat what was changed.

A model that sees the beginning of a phrase for the second time looks up the first (induction heads, Olsson et al. 2022,
https://arxiv.org/abs/2209.11895). If the first is what was edited, the keys and values of the second say so, however
far behind it is. They are found from token ids alone.
"""

# all tensors are 1-D, of token ids or positions, on the CPU
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def echoes(text: Tensor, changed: Sequence[Tensor], may: Tensor, most: int) -> Tensor:
    """Up to `most` positions of `text` where phrases of the changed tokens come again.

    A phrase is two tokens or more in a row. Rare ones come first: what is common is looked up elsewhere too.

    Args:
        text: the text after the edit.
        changed: runs of tokens that were deleted or are new.
        may: the positions that may be chosen, a bool each.
        most: how many positions are wanted.
    """
    nothing = torch.arange(0)
    changed = [t for t in changed if len(t) > 1]
    if not changed or most < 1 or len(text) < 2:
        return nothing
    base = max(int(t.max()) for t in (text, *changed)) + 1
    pairs = [t[:-1] * base + t[1:] for t in changed]
    again = torch.isin(text[:-1] * base + text[1:], torch.cat(pairs))  # at i: tokens i and i + 1
    again &= may[:-1] | may[1:]
    if not bool(again.any()):
        return nothing
    rarity = -(torch.bincount(text)[text].double() / len(text)).log()
    pair = again.nonzero()[:, 0]
    apart = pair[1:] != pair[:-1] + 1
    one = torch.ones(1, dtype=torch.bool)
    begins, ends = pair[torch.cat([one, apart])], pair[torch.cat([apart, one])] + 2  # of each phrase
    sums = torch.cat([torch.zeros(1, dtype=torch.double), rarity.cumsum(0)])
    order = (sums[ends] - sums[begins]).argsort(descending=True, stable=True)
    phrases = [torch.arange(int(begins[i]), int(ends[i])) for i in order[:most]]  # a phrase is a token at least
    at = torch.cat(phrases)
    return at[may[at]][:most]
