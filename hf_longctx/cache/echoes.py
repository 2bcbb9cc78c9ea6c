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
    known = torch.zeros(base, dtype=torch.bool)
    known[torch.cat(changed)] = True
    both = known[text]
    pair = (both[:-1] & both[1:] & (may[:-1] | may[1:])).nonzero()[:, 0]  # at i: tokens i and i + 1
    wanted = torch.cat([t[:-1] * base + t[1:] for t in changed])
    pair = pair[torch.isin(text[pair] * base + text[pair + 1], wanted)]
    if not len(pair):
        return nothing
    apart = pair[1:] != pair[:-1] + 1
    one = torch.ones(1, dtype=torch.bool)
    begins, ends = pair[torch.cat([one, apart])], pair[torch.cat([apart, one])] + 2  # of each phrase
    counts = torch.bincount(text, minlength=base)
    rarity = [float(-(counts[text[i:j]] / len(text)).log().sum()) for i, j in zip(begins, ends, strict=True)]
    order = sorted(range(len(rarity)), key=lambda i: -rarity[i])
    phrases = [torch.arange(int(begins[i]), int(ends[i])) for i in order[:most]]  # a phrase is a token at least
    at = torch.cat(phrases)
    return at[may[at]][:most]
