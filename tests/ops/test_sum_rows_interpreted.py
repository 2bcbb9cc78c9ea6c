"""Sums of rows in Triton without a GPU: run by Triton's interpreter, compiled for an H100. Needs triton."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

SUMMING = """
import torch
from hf_longctx.ops.kernels.triton_sum_rows import sum_sources
from hf_longctx.parallel.sums import sources_of
torch.manual_seed(0)
for S, G, D, rows in ((70, 3, 64, 90), (34, 2, 80, 33), (1, 4, 16, 40)):
    runs = [torch.randperm(rows)[: S // 2].sort()[0], torch.randperm(rows)[: S - S // 2].sort()[0]]
    numbers = torch.cat(runs)  # some rows once, some twice, some never
    left, right = torch.randn(S, G, D).bfloat16(), torch.randn(G, S, D).transpose(0, 1).bfloat16()
    true = torch.zeros(rows, G, 2 * D).index_add_(0, numbers, torch.cat([left, right], -1).float())
    assert torch.equal(sum_sources(left, right, sources_of(numbers, rows)), true)
"""

COMPILING = """
from hf_longctx.ops.kernels import triton_sum_rows
from tests.ops.interpreted import compile_for_h100
for D, DP in ((64, 64), (80, 128), (256, 256)):
    kinds = {"left": "*bf16", "right": "*bf16", "sources": "*i32", "out": "*fp32"}
    compile_for_h100(triton_sum_rows._sum_rows, {"D": D, "DP": DP, "ROWS": triton_sum_rows.ROWS}, kinds)
"""


@pytest.mark.parametrize(("code", "interpret"), [(SUMMING, "1"), (COMPILING, "0")], ids=["interpreted", "compiled"])
def test_sums_of_rows(code: str, interpret: str) -> None:
    run(code, interpret)
