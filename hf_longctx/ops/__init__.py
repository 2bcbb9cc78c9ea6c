"""Attention as arithmetic: masks, positions, branches, their kernels and how their parts are merged.

`attend` itself is `hf_longctx.attend`: here its name is that of its module.
"""

from .bias import Bias, DistanceBuckets, DistanceSlopes
from .branch import Branch
from .masks import BeyondWindow, Causal, Chunk, Full, Mask, Packed, TopBlocks, TopKeys, Window
from .positions import Positions, Segments
from .rotation import Rotation
from .segments import segments_of

__all__ = [
    "BeyondWindow",
    "Bias",
    "Branch",
    "Causal",
    "Chunk",
    "DistanceBuckets",
    "DistanceSlopes",
    "Full",
    "Mask",
    "Packed",
    "Positions",
    "Rotation",
    "Segments",
    "TopBlocks",
    "TopKeys",
    "Window",
    "segments_of",
]
