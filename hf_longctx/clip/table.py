"""Knowledge-preserved stretching of a table of positions (Long-CLIP, https://arxiv.org/abs/2403.15378, section 3.1).

The first rows, which training used most, are copied; between the others, `ratio - 1` rows are interpolated; after the
last, the line through the last two is continued.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEEP, RATIO = 20, 4  # the paper's: 77 rows become 248
MOST = 1_000_000  # positions of a table; those of the paper are 248
# The largest deviation from a line, as a share of the distance between neighbours: trained rows are far above it.
_STRAIGHT = 0.05


def stretched_length(length: int, keep: int = KEEP, ratio: int = RATIO) -> int:
    """The number of rows of a table of `length` rows when stretched; ValueError if it cannot be."""
    for name, value in (("keep", keep), ("ratio", ratio)):
        if type(value) is not int:
            raise ValueError(f"{name}={value!r}: expected a whole number. The paper's are keep={KEEP}, ratio={RATIO}.")
    if ratio < 2:
        raise ValueError(
            f"ratio={ratio}: expected 2 or more, the number of rows for each after `keep`. The paper's is {RATIO}."
        )
    if length < 2:
        raise ValueError(f"a table of {length} positions cannot be stretched: two rows at least are needed.")
    if not 0 <= keep < length:
        raise ValueError(
            f"keep={keep}: expected 0 to {length - 1}, as the table has {length} rows and one at least must be "
            f"stretched. The paper's is {KEEP} of 77."
        )
    stretched = keep + ratio * (length - keep)
    if stretched > MOST:
        raise ValueError(
            f"ratio={ratio}: a table of {stretched:,} positions; expected at most {MOST:,}. The paper's is {RATIO}."
        )
    return stretched


def stretch_table(table: Tensor, keep: int = KEEP, ratio: int = RATIO) -> Tensor:
    """The stretched copy of `table`, [rows, width]; the first `keep` rows are bit-equal.

    Every operation is the published code's, in its order and in the table's dtype, so that 20 and 4 give its result bit
    for bit.
    """
    if table.ndim != 2 or not table.is_floating_point():
        raise ValueError(
            f"a table of shape {list(table.shape)} and {table.dtype}: expected floating-point rows, [positions, width]."
        )
    length = table.shape[0]
    count = stretched_length(length, keep, ratio) - keep
    step = torch.arange(count, device=table.device)
    left, part = keep + step // ratio, (step % ratio)[:, None].to(table.dtype)
    inner = left < length - 1
    here, after = table[left[inner]], table[left[inner] + 1]
    between = (ratio - part[inner]) * here / ratio + part[inner] * after / ratio
    between = torch.where(part[inner] == 0, here, between)  # 3 * x / 3 is not always x
    # the last row has no row after it: continue the line from the one before
    beyond = table[-1] + part[~inner] * (table[-1] - table[-2]) / ratio
    return torch.cat([table[:keep], between, beyond])


def is_interpolated(table: Tensor) -> bool:
    """Whether the end of `table` is still plain interpolation: its last rows lie on one line, evenly spaced.

    True for a stretched table, and for a Long-CLIP checkpoint whose trained rows were lost; False for trained ones.
    """
    if table.ndim != 2 or table.shape[0] < 4 or not table.is_floating_point():
        return False
    last = table[-4:].detach().to("cpu", torch.float64)
    steps = last.diff(dim=0)
    rounding = 2 * torch.finfo(table.dtype).eps * last.norm(dim=1).max()
    bend = steps.diff(dim=0).norm(dim=1).max()
    return bool(steps[-1].norm() > 0 and bend < _STRAIGHT * steps[-1].norm() + rounding)
