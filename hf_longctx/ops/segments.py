"""The runs of packed documents, from lengths or from positions: worked out once, before the layers that read them."""

# L queries, S keys, M documents, N runs + 1
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .masks import DOCUMENT
from .positions import Segments


def segments(lengths: Sequence[tuple[int, int]], device: torch.device | str) -> Segments:
    """Runs of so many queries and keys, one after the other. Copies to the device, so call it outside of layers."""
    starts = [[0, *accumulate(run[side] for run in lengths)] for side in (0, 1)]
    cu = torch.tensor(starts, dtype=torch.int32)
    if torch.device(device).type == "cuda":
        cu = cu.pin_memory()  # else the host waits for the copy
    cu_q, cu_k = cu.to(device, non_blocking=True).unbind()
    longest_q, longest_k = (max((run[side] for run in lengths), default=0) for side in (0, 1))
    return Segments(cu_q, cu_k, longest_q, longest_k, tuple(lengths))


def segments_of(q_pos_1L: Tensor, k_pos_1S: Tensor) -> Segments | None:
    """The runs of packed rows, one a document, from positions `document * DOCUMENT + position`.

    The host reads the positions, so call it outside of layers.

    Returns:
        None where rows are not such runs: several rows in the batch, padding, positions that do not rise, or queries
        and keys of a document that do not end together.
    """
    if q_pos_1L.shape[0] != 1:
        return None
    q_L, k_S = q_pos_1L[0].cpu(), k_pos_1S[0].cpu()
    if not (_rises(q_L) and _rises(k_S)):
        return None
    document_L = q_L // DOCUMENT
    document_M = torch.cat([document_L, k_S // DOCUMENT]).unique()
    edge_N = torch.cat([document_M, document_M[-1:] + 1]) * DOCUMENT
    cu_q_N, cu_k_N = torch.searchsorted(q_L, edge_N), torch.searchsorted(k_S, edge_N)
    run_L = torch.searchsorted(document_M, document_L)
    # where the keys end that a query sees: by index, counted from the end of its run, and by position
    from_end_L = cu_q_N[run_L + 1] - torch.arange(len(q_L))
    by_index_L = torch.maximum(cu_k_N[run_L + 1] - from_end_L + 1, cu_k_N[run_L])
    if not torch.equal(by_index_L, torch.searchsorted(k_S, q_L, right=True)):
        return None
    lengths = zip(cu_q_N.diff().tolist(), cu_k_N.diff().tolist(), strict=True)
    return segments(list(lengths), q_pos_1L.device)


def _rises(pos_X: Tensor) -> bool:
    """Are these positions of real tokens, each above the one before?"""
    return bool((pos_X.diff() > 0).all()) and not bool((pos_X[:1] < 0).any())
