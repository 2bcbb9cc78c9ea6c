"""The kernels that cards take, under every kind of exchange, with torch's ops written plainly for the CPU.

What is handed to these ops, and what is made of their answers, is what cards do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longctx.ops.kernels import KERNELS
from hf_longctx.parallel import blocks
from tests.ops.packs import plain_ops

from .cases import MASKS, Case, errors, on_a_rank
from .pool import Pool

# each kernel's packs: cuDNN leaves runs of one token to others
PACKS = {"cuda_flash": ["dense odd", "packed odd", "short whole", "rank without rows"], "cudnn": ["dense odd"]}
KINDS = ["ring", "gather", "ulysses"]
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
CASES = [
    (name, Case(pack, kind, heads, mask, dtype))
    for name, packs in PACKS.items()
    for pack in packs
    for kind in KINDS
    for mask in MASKS
    if name != "cudnn" or "window" not in mask
    for heads, dtype in [((9, 3), torch.float64), ((8, 2), torch.bfloat16)]
]


def by(name: str, case: Case) -> dict[str, Any]:
    """What this rank finds with a kernel, and how often its ops ran."""
    with pytest.MonkeyPatch.context() as patch:
        ops = plain_ops(patch)
        patch.setattr(blocks, "choose", lambda *_: KERNELS[name])
        found = on_a_rank(case)
    return found | {"calls": len(ops.calls)}


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda one: str(one))
def test_two_ranks_are_one_process(two: Pool, name: str, case: Case) -> None:
    found = two.run(by, name, case)
    assert sum(rank.pop("calls") for rank in found) > 0
    off = errors(case, found)
    assert max(off.values()) < EXACT[case.dtype], off
