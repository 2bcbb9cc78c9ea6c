"""Room for the keys and values of a text, made and, in host memory, checked before anything is kept there."""

# B rows, G key/value heads, L new tokens, D head dim
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..console.units import show_bytes
from ..ops.host import free_host_bytes, give_back_pinned, pinned_bytes
from ..ops.pinned import POOL
from . import growing
from .store import Store

Pages = Counter[int]  # how many of each size in bytes


def check_first(k_BGLD: Tensor, v_BGLD: Tensor, layers: int) -> None:
    """ValueError unless the first tokens of a text fit into host memory, in so many layers of this shape.

    Those of this layer and of the next one are begun to be made: not those of all, some of which may keep nothing.
    """
    tokens, rows = k_BGLD.shape[2], len(k_BGLD)
    each = Counter[int]()
    for x in (k_BGLD, v_BGLD):
        each[x[0, :, :1].nbytes * growing.PIECE] += rows
    one = layers * sum(pinned_bytes(size) * count for size, count in each.items())
    pages = Counter({size: math.ceil(tokens / growing.PIECE) * count for size, count in each.items()})
    _check(lambda: _lacking(_times(pages, layers)), one, tokens, 0)
    _begin(_times(pages, min(layers, 2)), k_BGLD.device)


def make_room(stores: Sequence[Store], tokens: int) -> None:
    """Let so many more tokens of every row be kept without another allocation.

    ValueError, and nothing has happened, if they do not fit into host memory. While a text is read in pieces, the pages
    of the next one are begun to be made: it probably needs as many.
    """
    stores = [store for store in stores if not store.has_room(tokens)]
    pages, device, one, held = Counter[int](), None, 0, 0
    for store in stores:
        for growing_, filled in store.on_host():
            size, device = growing_.pieces[-1].nbytes, growing_.device
            pages[size] += max(math.ceil((filled + tokens) / growing_.size) - len(growing_.pieces), 0)
            one, held = one + pinned_bytes(size), max(held, len(growing_.pieces) * growing_.size)
    if pages.total():
        _check(lambda: _lacking(pages), one, tokens, held)
        _begin(pages, device)
    Store.reserve_all(stores, tokens)
    if tokens > 1 and pages.total():
        free = free_host_bytes()
        if free is not None and free >= 2 * _lacking(pages):  # as much is left to others
            _begin(pages, device)


def _times(pages: Pages, layers: int) -> Pages:
    return Counter({size: count * layers for size, count in pages.items()})


def _lacking(pages: Pages) -> int:
    """Bytes that are yet to be found for these pages, and for what is being made: it may not have its memory yet."""
    more = sum(max(count - POOL.available(size), 0) * pinned_bytes(size) for size, count in pages.items())
    return more + POOL.coming_bytes()


def _begin(pages: Pages, device: torch.device | None) -> None:
    for size, count in pages.items():
        POOL.ahead(size, count, device)


def _check(need: Callable[[], int], one: int, tokens: int, held: int) -> None:
    """Of `need` bytes for `tokens` more, where `held` are there and a page of all rows and layers takes `one`."""
    free = free_host_bytes()
    if free is not None and need() > free:
        give_back_pinned()  # that of an earlier text, perhaps
        free = free_host_bytes()
    if free is None or need() <= free:
        return
    fits = free // one * growing.PIECE + held
    raise ValueError(
        f"keys in host memory: {tokens:,} more tokens of every row need {show_bytes(need())} of it, and "
        f"{show_bytes(free)} are free. A text of {fits:,} tokens fits. Read a shorter one, or fewer rows at once, or "
        f"keep the keys on the GPU."
    )
