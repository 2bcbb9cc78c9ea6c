"""Which tokens far after an edit have the largest error? Those that repeat the edited phrase.

A model that reads the beginning of a phrase for the second time looks up the first (induction heads, Olsson et al.
2022, https://arxiv.org/abs/2209.11895). If the first was edited, the keys and values of the second depend on it, at any
distance. Repetitions are found from token ids alone.
"""

# all arrays are 1-D, of token ids or positions
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .difference import Ids


def echoes(text: Ids, changed: Sequence[Ids], may: NDArray[np.bool_], limit: int) -> NDArray[np.intp]:
    """Up to `limit` positions of `text` where phrases of the changed tokens are repeated.

    A phrase is two tokens or more in a row. Rare ones are chosen first: common ones are looked up elsewhere too. Of two
    that are equally rare, the first one is chosen.

    Args:
        text: The text after the edit.
        changed: Runs of tokens that were deleted or are new.
        may: The positions that may be chosen, one bool per token.
        limit: The number of positions.
    """
    nothing = np.zeros(0, np.intp)
    changed = [t for t in changed if len(t) > 1]
    if not changed or limit < 1 or len(text) < 2:
        return nothing
    tokens = np.sort(np.concatenate(changed))
    base = int(tokens[-1]) + 2
    known = np.zeros(base, bool)
    known[tokens] = True
    both = known.take(text, mode="clip")  # larger ids count as the last one, which is not known
    pair = np.flatnonzero(both[:-1] & both[1:] & (may[:-1] | may[1:]))  # at i: tokens i and i + 1
    wanted = np.sort(np.concatenate([t[:-1] * base + t[1:] for t in changed]))
    found = text[pair] * base + text[pair + 1]
    pair = pair[wanted.take(np.searchsorted(wanted, found), mode="clip") == found]
    if not len(pair):
        return nothing
    apart = pair[1:] != pair[:-1] + 1
    begins, ends = pair[np.concatenate([[True], apart])], pair[np.concatenate([apart, [True]])] + 2  # of each phrase
    counts = np.bincount(np.searchsorted(tokens, text[both]), minlength=len(tokens))
    rare = np.log(len(text) / counts[np.searchsorted(tokens, text[_ranges(begins, ends)])])
    # rounded: a product of counts is the same in any order, a sum of logarithms only up to the last bits
    rarity = np.add.reduceat(rare, np.cumsum(ends - begins) - (ends - begins)).round(9)
    first = np.argsort(-rarity, kind="stable")[:limit]  # a phrase has at least one token
    at = _ranges(begins[first], ends[first])
    return at[may[at]][:limit]


def _ranges(begins: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.intp]:
    """begins[0], ..., ends[0] - 1, begins[1], ..."""
    lengths = ends - begins
    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(int(lengths.sum()))
