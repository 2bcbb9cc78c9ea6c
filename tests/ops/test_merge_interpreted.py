"""Merging in place in Triton without a GPU: run by Triton's interpreter, compiled for an H100. Needs triton."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

MERGING = """
import torch
from hf_longctx.ops.kernels.triton_merge_into import merge_rows
from hf_longctx.ops.merge import merge
torch.manual_seed(0)
for B, L, H, D in ((1, 70, 3, 64), (2, 33, 2, 80), (1, 1, 4, 128)):
    wide = torch.randn(B, L + 9, H, D)
    lse = torch.randn(B, H, L + 9)
    part = torch.randn(B, H, L, D).transpose(1, 2)
    part_lse = torch.randn(B, L, H).transpose(1, 2)
    lse[:, :, 5:7] = part_lse[:, :, :1] = -torch.inf  # the first of these rows has no key at all
    lse[:, :, 5 : 5 + min(L, 1)] = -torch.inf
    out_view, lse_view = wide[:, 5 : 5 + L], lse[:, :, 5 : 5 + L]
    before, lse_before = wide.clone(), lse.clone()
    true, true_lse = merge(out_view.clone(), lse_view.clone(), part, part_lse)
    merge_rows(out_view, lse_view, part, part_lse)
    torch.testing.assert_close(out_view, true, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(lse_view, true_lse, atol=2e-6, rtol=2e-6)
    for rows in (slice(0, 5), slice(5 + L, None)):
        assert torch.equal(wide[:, rows], before[:, rows]) and torch.equal(lse[:, :, rows], lse_before[:, :, rows])
"""

COMPILING = """
from hf_longctx.ops.kernels import triton_merge_into
from tests.ops.interpreted import compile_for_h100
for out, part in (("*fp32", "*bf16"), ("*fp32", "*fp32"), ("*bf16", "*bf16")):
    kinds = {"out": out, "lse": "*fp32", "part": part, "part_lse": "*fp32"}
    compile_for_h100(triton_merge_into._merge_rows, {"D": 64, "DP": 64, "ROWS": triton_merge_into.ROWS}, kinds)
"""


@pytest.mark.parametrize(("code", "interpret"), [(MERGING, "1"), (COMPILING, "0")], ids=["interpreted", "compiled"])
def test_merging_in_place(code: str, interpret: str) -> None:
    run(code, interpret)
