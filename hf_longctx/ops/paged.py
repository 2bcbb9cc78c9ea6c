"""Keys and values put into pages, as a `Store` on a GPU has them: for checks of kernels, tests and benchmarks."""

# B rows, G key/value heads, S slots, D head dim
from __future__ import annotations

import torch
from torch import Tensor

from . import pages as sizes
from .codes import Centre, encode
from .pages import NEVER, Pages


def paged(
    k_BGSD: Tensor, v_BGSD: Tensor, pos_BS: Tensor, centred_by: int, pages: int | None = None
) -> tuple[Pages, list[Tensor]]:
    """`Pages` of these tokens, and the tensors that the addresses are of, to be kept as long as they are used.

    Args:
        k_BGSD: Keys.
        v_BGSD: Values.
        pos_BS: Their positions, -1 for what is not seen.
        centred_by: The first keys of a row that its codes are centred by.
        pages: How many pages of a row there may be; None: as many as there are.
    """
    B, _, S, _ = k_BGSD.shape
    there = -(-S // sizes.PAGE)
    held: list[Tensor] = []
    shape, device = (B, there if pages is None else pages), k_BGSD.device
    names = ("k", "v", "words", "size", "pos")
    at = {name: torch.zeros(shape, dtype=torch.long) for name in names}
    centres = [Centre.of(k_BGSD[b, :, :centred_by]) for b in range(B)]
    for b, centre in enumerate(centres):
        for n in range(there):
            part = slice(n * sizes.PAGE, min((n + 1) * sizes.PAGE, S))
            k, v, pos = k_BGSD[b, :, part], v_BGSD[b, :, part], pos_BS[b, part]
            for name, filled in zip(names, (k, v, *encode(k, centre), pos[None]), strict=True):
                page = filled.new_zeros(len(filled), sizes.PAGE, *filled.shape[2:])
                page[:, : filled.shape[1]] = filled
                held.append(page)
                at[name][b, n] = page.data_ptr()
    never = torch.full((B,), NEVER, device=device)
    ready_B = never if centred_by > S else pos_BS[:, centred_by - 1].contiguous()
    mean, width = (torch.stack([centre[i] for centre in centres]) for i in range(2))
    filled_B = torch.full((B,), S, device=device)
    addresses = {name: address.to(device) for name, address in at.items()}
    return Pages(**addresses, filled_B=filled_B, mean_BGD=mean, width_BGC=width, ready_B=ready_B, dtype=k.dtype), held
