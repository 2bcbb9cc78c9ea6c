"""Long-CLIP's stretching as section 3.1 of the paper says it, row by row, in its symbols."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def stretched(PE: Tensor, k: int, lambda_1: int) -> Tensor:
    """PE*(pos) = PE(pos) below k; else PE at k + (pos - k) / lambda_1, linearly, and in a line after the last row."""
    rows = [PE[pos] for pos in range(k)]
    for i in range(k, len(PE)):
        for j in range(lambda_1):
            alpha = j / lambda_1
            if i + 1 < len(PE):
                rows.append((1 - alpha) * PE[i] + alpha * PE[i + 1])
            else:
                rows.append(PE[i] + alpha * (PE[i] - PE[i - 1]))
    return torch.stack(rows)


def published(table: Tensor) -> Tensor:
    """The published table, 20 rows kept and 4 for each other, with that code's order of operations."""
    rows = list(table[:20])
    for here, after in pairwise(table[20:]):
        rows += [here, 3 * here / 4 + 1 * after / 4, 2 * here / 4 + 2 * after / 4, 1 * here / 4 + 3 * after / 4]
    last, before = table[-1], table[-2]
    return torch.stack(rows + [last + j * (last - before) / 4 for j in range(4)])
