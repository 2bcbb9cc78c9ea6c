"""Kernels read keys and values by address 16 bytes a thread, so that rows in host memory cross PCIe in whole lines."""

from __future__ import annotations

import torch

from hf_longctx.cache import addresses
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.ops.pages import ALIGNED
from tests.ops.interpreted import needs_triton, run

WIDE = """
import re
from tests.ops.interpreted import compile_for_h100
from hf_longctx.ops.kernels import triton_found, triton_keys, triton_pages, triton_shortlist

kinds = {"q": "*TYPE", "like": "*TYPE", "out": "*TYPE", "k": "*i64", "v": "*i64", "q_pos": "*i64",
         "pos": "*i64", "filled": "*i64", "after": "*i64", "table": "*i64", "real": "*fp32", "score": "*fp32",
         "best": "*fp32", "part": "*fp32", "part_lse": "*fp32", "lowered": "*fp32", "margin": "fp32"}
numbers = ("found", "slot", "block", "count")
heads = dict(PAGE=8192, R=4, HEADS=False)
found = dict(PAGE=8192, R=4, RP=16, KP=16, PP=16, CAP=0.0, GATED=True, LOWERED=False)
# the kernel, its sizes, how many rows of keys and values a program reads, and of queries, whose alignment is not told
for kernel, sizes, rows, others in (
    (triton_shortlist._shortlist, heads | dict(NC=8), 32, 8), (triton_pages._gather, dict(ROWS=32, PAGE=8192), 32, 0),
    (triton_found._found, found, 32, 16), (triton_keys._key_tokens, heads | dict(NC=8), 64, 8),
    (triton_keys._key_maxima, heads | dict(RP=4, NQ=8), 64, 8),
):
    names = kernel.arg_names
    for kind, size, D in (("bf16", 2, 128), ("fp16", 2, 64), ("fp32", 4, 128)):
        dims = {"D": D, "DP": D, "V": D, "VP": D}
        given = {name: value.replace("TYPE", kind) for name, value in kinds.items() if name in names}
        given |= {name: "*i32" for name in numbers if name in names}
        if kernel is triton_pages._gather:
            given["at"] = "*i64"
        made = compile_for_h100(kernel, sizes | {n: x for n, x in dims.items() if n in names}, given)
        ptx, threads = made.asm["ptx"], 32 * made.metadata.num_warps
        wide = len(re.findall(r"ld[.]global[.]v4[.]b32|cp[.]async[.]cg[.]shared[.]global [^;]*0x10", ptx))
        assert wide * 16 * threads >= rows * D * size, (kernel.__name__, kind, wide)
        narrow = len(re.findall(r"ld[.]global[.]b" + str(8 * size) + r"\\b", ptx))
        few = max(others * D // threads, others and 1) + 40 * (size == 4)  # a table's and a row's numbers too
        assert narrow <= few, (kernel.__name__, kind, narrow, few)
"""


@needs_triton
def test_rows_are_read_16_bytes_a_thread() -> None:
    run(WIDE, "0")


def test_pages_at_other_addresses_are_not_read_by_address() -> None:
    row = StoreRow(0, paged=True)
    row.k.size = row.v.size = row.pos.size = row.column.size = 16
    for number in (0, 4):
        for growing in (row.k, row.v, row.pos, row.column):
            memory = torch.zeros(2 * 16 * 8 + ALIGNED, dtype=torch.bfloat16)
            growing.device = memory.device
            growing.pieces = [memory[number : number + 2 * 16 * 8].view(2, 16, 8)]
        assert addresses.can_stand(row) is (number == 0)
