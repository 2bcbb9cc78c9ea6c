"""Where the Triton kernels that keep tokens in pages and gather them can be used, and a check of them on first use."""

# B rows, G key/value heads, D head dim, V that of values
from __future__ import annotations

import logging

import torch
from torch import Tensor

from .. import pages as sizes
from ..checked import by_itself, checked_once, randoms
from ..codes import Centre, encode
from ..paged import paged

logger = logging.getLogger("hf_longctx")


def unsupported_reason(device: torch.device, k_GSD: Tensor, v_GSV: Tensor) -> str | None:
    """Why `triton_pages` cannot keep such keys and values for a device; None if it can. They may lie in host memory."""
    kind = device, k_GSD.dtype, k_GSD.shape[-1], v_GSV.shape[-1]
    return checked_once(unsupported_reason, kind, lambda: _check(*kind))


@by_itself
def _check(device: torch.device, dtype: torch.dtype, dim: int, v_dim: int) -> str | None:
    """What is wrong with the kernels on this device; None if a token is kept and found again, bit for bit.

    Two rows, the second shorter: what is right of the first alone would keep the tokens of others in the wrong place.
    """
    random, B, G, S = randoms(device, dtype), 2, 2, 5
    k, v = random(B, G, S + 1, dim), random(B, G, S + 1, v_dim)
    filled, pos = (S, S - 2), torch.arange(S, device=device).repeat(B, 1)
    pages, held = paged(k[:, :, :S], v[:, :, :S], pos, S)
    filled_B1 = torch.tensor(filled, device=device)[:, None]
    pages = pages._replace(filled_B=filled_B1[:, 0].clone())
    columns = [torch.zeros(sizes.PAGE, dtype=torch.long, device=device) for _ in range(B)]
    at = torch.tensor([[row.data_ptr()] for row in columns], device=device)
    arrived, places = torch.zeros(B, dtype=torch.int32, device=device), (1, 2)
    window = torch.zeros_like(k[:, :, :3]), torch.zeros_like(v[:, :, :3]), torch.tensor([[1], [2]], device=device)
    reason = None
    try:
        from .triton_pages import gather, keep

        keep(pages, at, k[:, :, S:], v[:, :, S:], filled_B1, filled_B1, arrived, window)
        table = torch.tensor([[[[n, -1, 2]], [[0, n, 1]]] for n in filled], device=device)
        found = gather(pages.k, table, G, dim, dtype), gather(pages.v, table, G, v_dim, dtype)
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"their check raised {type(error).__name__}: {error}"
    else:
        pairs = [(pages.filled_B, filled_B1[:, 0] + 1), (arrived, torch.zeros_like(arrived))]
        every = torch.arange(G, device=device)[:, None]
        for b, n in enumerate(filled):
            centre = Centre(pages.mean_BGD[b], pages.width_BGC[b])
            wanted = k[b, :, S], v[b, :, S], *(x[:, 0] for x in encode(k[b, :, S:], centre)), filled_B1[b]
            own = held[b * len(wanted) : (b + 1) * len(wanted)]
            pairs += [(page[:, n], one) for page, one in zip(own, wanted, strict=True)]
            pairs += [(columns[b][n], filled_B1[b, 0])]
            pairs += [(here[b, :, places[b]], x[b, :, S]) for here, x in zip(window, (k, v), strict=False)]
            slots = table[b, :, 0]
            for got, x in zip(found, (k, v), strict=True):
                x = x[b].clone()
                x[:, n] = x[:, S]
                pairs += [(got[b, :, 0], x[every, slots].masked_fill(slots[..., None] < 0, 0))]
        if not all(torch.equal(*pair) for pair in pairs):
            reason = "what they keep is not found again as it was"
    del held  # what the addresses are of was needed until here
    if reason is not None:
        logger.warning("the Triton kernels for pages of tokens are not used, and tokens take longer: %s", reason)
    return reason
