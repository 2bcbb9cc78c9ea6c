"""Where the tokens of a store lie in memory, for kernels: pages of fixed size, found by address.

Addresses stand in tensors of a fixed size, so that a text that grows by a page changes an entry, and a recorded CUDA
graph goes on to serve it.
"""

# B rows, N pages of a row at most, G key/value heads, D head dim, C channels of a code, W = C / 32 words
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PAGE = 8192  # slots of a page
ALIGNED = 16  # bytes that every page's address is a multiple of: kernels read rows 16 bytes at a time, in whole lines
NEVER = torch.iinfo(torch.long).max  # see `Pages.ready_B`


class Pages(NamedTuple):
    """The pages of every row. Slot s of a row lies in its page s // PAGE, at s % PAGE. Addresses are multiples of 16.

    Attributes:
        k: Addresses (B, N) int64 of pages (G, PAGE, D); 0: there is none. On the device, or in pinned host memory.
        v: The same of values.
        words: The same of codes, (G, PAGE, W) int32; on the device. 0: there are no codes (C is 0).
        size: The same of their sizes, (G, PAGE) fp16.
        pos: The same of positions, (PAGE,) int64, -1 where a token is not seen.
        filled_B: Slots that are filled, int64.
        mean_BGD: What codes are centred by, fp32; see `ops.codes.Centre`.
        width_BGC: The widths of their channels, fp32.
        ready_B: The position from which on a row has codes to search, int64; NEVER where it has none yet.
        dtype: Of keys and values.
    """

    k: Tensor
    v: Tensor
    words: Tensor
    size: Tensor
    pos: Tensor
    filled_B: Tensor
    mean_BGD: Tensor
    width_BGC: Tensor
    ready_B: Tensor
    dtype: torch.dtype
