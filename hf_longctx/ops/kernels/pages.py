"""Where the Triton kernels that keep tokens in pages and gather them can be used, and a check of them on first use."""

# B rows, G key/value heads, D head dim, V that of values
from __future__ import annotations

import logging

import torch
from torch import Tensor

from .. import pages as sizes
from ..checked import checked_once, randoms
from ..codes import Centre, encode
from ..paged import paged

logger = logging.getLogger("hf_longctx")


def unsupported_reason(device: torch.device, k_GSD: Tensor, v_GSV: Tensor) -> str | None:
    """Why `triton_pages` cannot keep such keys and values for a device; None if it can. They may lie in host memory."""
    kind = device, k_GSD.dtype, k_GSD.shape[-1], v_GSV.shape[-1]
    return checked_once(unsupported_reason, kind, lambda: _check(*kind))


@torch.no_grad()
def _check(device: torch.device, dtype: torch.dtype, dim: int, v_dim: int) -> str | None:
    """What is wrong with the kernels on this device; None if a token is kept and found again, bit for bit."""
    random, G, S = randoms(device, dtype), 2, 5
    k, v = random(1, G, S + 1, dim), random(1, G, S + 1, v_dim)
    pos = torch.arange(S + 1, device=device)[None]
    pages, held = paged(k[:, :, :S], v[:, :, :S], pos[:, :S], S)
    columns = torch.zeros(sizes.PAGE, dtype=torch.long, device=device)
    at = torch.full_like(pages.k, columns.data_ptr())
    arrived, second = (
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.ones(1, 1, dtype=torch.long, device=device),
    )
    window = torch.zeros_like(k[:, :, :3]), torch.zeros_like(v[:, :, :3]), second
    centre, reason = Centre(pages.mean_BGD[0], pages.width_BGC[0]), None
    try:
        from .triton_pages import gather, keep

        keep(pages, at, k[:, :, S:], v[:, :, S:], pos[:, S:], pos[:, S:], arrived, window)
        table = torch.tensor([[[[S, -1, 2]], [[0, S, 1]]]], device=device)
        found = gather(pages.k, table, G, dim, dtype), gather(pages.v, table, G, v_dim, dtype)
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"their check raised {type(error).__name__}: {error}"
    else:
        wanted = k[0, :, S], v[0, :, S], *(x[:, 0] for x in encode(k[0, :, S:], centre)), pos[:, S]
        pairs = [(page[:, S], one) for page, one in zip(held, wanted, strict=True)] + [(columns[S], pos[0, S])]
        pairs += [(here[:, :, 1], x[:, :, S]) for here, x in zip(window, (k, v), strict=False)]
        pairs += [(pages.filled_B, pos[0, S:] + 1), (arrived, torch.zeros_like(arrived))]
        every = torch.arange(G, device=device)[:, None]
        pairs += [
            (x[0, :, 0], kept[0][every, table[0, :, 0]].masked_fill(table[0, :, 0, :, None] < 0, 0))
            for x, kept in zip(found, (k, v), strict=True)
        ]
        if not all(torch.equal(*pair) for pair in pairs):
            reason = "what they keep is not found again as it was"
    del held  # what the addresses are of was needed until here
    if reason is not None:
        logger.warning("the Triton kernels for pages of tokens are not used, and tokens take longer: %s", reason)
    return reason
