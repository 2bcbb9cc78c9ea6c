"""Room for the keys and values of a text, made and, in host memory, checked before anything is kept there."""

# B rows, G key/value heads, L new tokens, D head dim
from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..console.units import show_bytes
from ..ops.host import free_host_bytes, give_back_pinned, pinned_bytes
from . import growing
from .store import Store


def check_first(k_BGLD: Tensor, v_BGLD: Tensor, layers: int) -> None:
    """ValueError unless the first tokens of a text fit into host memory, in so many layers of this shape."""
    tokens = k_BGLD.shape[2]
    page = sum(pinned_bytes(x[0, :, :1].nbytes * growing.PIECE) for x in (k_BGLD, v_BGLD))
    each = page * len(k_BGLD) * layers
    _check(math.ceil(tokens / growing.PIECE) * each, each, tokens, 0)


def make_room(stores: Sequence[Store], tokens: int) -> None:
    """Let so many more tokens of every row be kept without another allocation.

    ValueError, and nothing has happened, if they do not fit into host memory.
    """
    stores = [store for store in stores if not store.has_room(tokens)]
    need = one = held = 0
    for store in stores:
        for growing_, filled in store.on_host():
            page = pinned_bytes(growing_.pieces[-1].nbytes)
            pages = math.ceil((filled + tokens) / growing_.size) - len(growing_.pieces)
            need, one, held = need + max(pages, 0) * page, one + page, max(held, len(growing_.pieces) * growing_.size)
    if need:
        _check(need, one, tokens, held)
    Store.reserve_all(stores, tokens)


def _check(need: int, one: int, tokens: int, held: int) -> None:
    """Of `need` bytes for `tokens` more, where `held` are there and a page of all rows and layers takes `one`."""
    free = free_host_bytes()
    if free is not None and need > free:
        give_back_pinned()  # that of an earlier text, perhaps
        free = free_host_bytes()
    if free is None or need <= free:
        return
    fits = free // one * growing.PIECE + held
    raise ValueError(
        f"keys in host memory: {tokens:,} more tokens of every row need {show_bytes(need)} of it, and "
        f"{show_bytes(free)} are free. A text of {fits:,} tokens fits. Read a shorter one, or fewer rows at once, or "
        f"keep the keys on the GPU."
    )
