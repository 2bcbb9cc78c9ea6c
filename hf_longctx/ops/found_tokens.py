"""What one query a row has found in pages, as kernels take it."""

# B batch, H query heads, D head dim, T tables, K slots of a table
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .pages import Pages


class FoundTokens(NamedTuple):
    """Tokens that one query a row has found.

    Attributes:
        q_BHD: The queries, moved to where they read keys that are left as they are.
        table_BTK: Their slots, -1 for none: a table for each group of heads that share keys, or for each head.
        pages: Where the slots are.
        margin: A token counts if some head of its table scores it no less than the log-sum-exp of the window less this;
            None: all of them count.
        lowered_BH: Scores are lowered by so much, in nats; inf: the head has found nothing. (B or 1, H or 1): rows, or
            heads, may be alike. None: they stay.
    """

    q_BHD: Tensor
    table_BTK: Tensor
    pages: Pages
    margin: float | None
    lowered_BH: Tensor | None = None
