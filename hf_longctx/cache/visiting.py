"""Keys in host memory that visit the device as a whole, where many of them would be fetched one by one."""

# B rows, G key/value heads, P pages, D head dim
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops.host import sent
from ..ops.pages import Pages

if TYPE_CHECKING:
    from .store_row import StoreRow

AT_MOST = 2**31  # bytes that they take on the device
# A key takes so many times as long to be fetched by itself as in a copy of all: 3 to 10 GiB/s over PCIe, and 49
# (retrieval.json, the 8B geometry on an H200).
FETCHED = 5


def keys_on_device(pages: Pages, rows: Sequence[StoreRow], reads: int) -> tuple[Pages, Tensor | None]:
    """The same pages with copies of the keys, and what must be held while kernels read them; None: they stay.

    They do where few of them are read, or where the device has no room for all: kernels read host memory too.

    Args:
        pages: Of `rows`.
        rows: Of a store.
        reads: Keys of each row and head that are going to be read one by one.
    """
    unlike = [row for row in rows if row.on_host and row.k.pieces]
    if not unlike or max(row.filled for row in unlike) > FETCHED * reads:
        return pages, None
    held = {id(piece): piece for row in unlike for piece in row.k.pieces[: -(-row.filled // row.k.size)]}
    first = next(iter(held.values()))
    if len(held) * first.nbytes > AT_MOST:
        return pages, None
    try:
        copies_PGSD = torch.empty(len(held), *first.shape, dtype=first.dtype, device=pages.k.device)
    except torch.OutOfMemoryError:
        return pages, None
    for copy, piece in zip(copies_PGSD, held.values(), strict=True):
        copy.copy_(piece, non_blocking=True)
    begin = copies_PGSD.data_ptr()
    at = {name: begin + number * first.nbytes for number, name in enumerate(held)}
    table = [[at.get(id(piece), 0) for piece in row.k.pieces] for row in rows]
    table = [entries + [0] * (pages.k.shape[1] - len(entries)) for entries in table]
    return pages._replace(k=sent(torch.tensor(table, device="cpu"), pages.k.device)), copies_PGSD
