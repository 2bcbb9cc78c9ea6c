"""The kernels that look tokens up compile for an H100, for arguments that they get, without a GPU. Needs triton."""

from __future__ import annotations

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

COMPILED = """
import torch
from tests.ops.interpreted import compile_launches
from tests.ops.lookups import Lookup
from hf_longctx.ops.codes import Centre, code_channels
from hf_longctx.ops.found_tokens import FoundTokens
from hf_longctx.ops.kernels import triton_coding, triton_found, triton_keys, triton_pages, triton_lookup as T
from hf_longctx.ops.kernels.triton_decode import Keys

kernels = compile_launches()
bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
for H, G, D, L, B, per, dtype, k, shortlist, pages in (
    (9, 3, 64, 1, 1, "group", bf16, 8, 1024, 160), (2, 2, 96, 2, 2, "group", fp32, 8, 64, 5),
    (32, 8, 128, 1, 1, "group", bf16, 64, 1024, 160), (8, 1, 256, 16, 2, "head", fp16, 8, 300, 20),
    (1, 1, 64, 1, 1, "group", fp16, 1, 1, 1),  # ones, which Triton makes constants
):
    more = pages - 1
    lookup = Lookup.of(H, G, D, 40, L, dtype=dtype, more=more)
    q, q_pos = lookup.q[:B], lookup.q_pos[:B].contiguous()
    rows = {name: x[:B].contiguous() for name, x in lookup.pages._asdict().items() if name != "dtype"}
    at = lookup.pages._replace(**rows)
    given = {"k": k, "near": 8192, "after_B": torch.full((B,), 15), "per": per, "shortlist": shortlist}
    table = T.choose(q, q_pos, at, **given)
    T.choose(q, q_pos, at, **given, moved=T.Moved(*torch.zeros(2, D // 2, dtype=dtype), torch.empty_like(q)))
    asked = torch.ones(G if per == "group" else H).int()
    T.choose(q, q_pos, at, **given, asked_T=asked)
    T.choose(q, q_pos, at, **given, by_bits=True)
    T.choose(q, q_pos, at, **given, by_bits=True, asked_T=asked)
    triton_keys.choose(q, q_pos, at, k=k, near=8192, after_B=torch.full((B,), 15), per=per)
    triton_pages.gather(at.k, table, G, D, dtype)
    if D != 96:
        addresses = torch.zeros(4, 9, dtype=torch.long)
        for levels in (1, code_channels(D) // D):
            centre = Centre(torch.zeros(G, D), torch.ones(G, levels * D))
            triton_coding.encode(lookup.k[0], centre)
            for kept in (True, False):
                triton_coding.store(lookup.k[0], lookup.v[0], addresses, 5, 8192, centre, kept)
        triton_coding.store(lookup.k[0], lookup.v[0], addresses, 5, 8192, None)
    if L > 1:
        continue
    new, arrived = (lookup.k[:B, :, :1], lookup.v[:B, :, :1], q_pos, q_pos[:1]), torch.zeros(B).int()
    triton_pages.keep(at, at.pos, *new, arrived)
    triton_pages.keep(at, at.pos, *new, arrived, (*(x[:B].contiguous() for x in (lookup.k, lookup.v)), q_pos))
    plain = at._replace(width_BGC=at.width_BGC[..., :0])  # without codes
    triton_pages.keep(plain, at.pos, *new, arrived)
    S, turn = 4096 if pages > 1 else 1, torch.zeros(1, 1, D, dtype=dtype)
    keys, pos = torch.zeros(B, G, S, D, dtype=dtype), torch.zeros(B, S, dtype=torch.long)
    window = Keys(keys, keys, pos, (turn, turn), (turn.expand(1, S, D), turn.expand(1, S, D)), 0, 8192)
    first = Keys(keys[:, :, :16], keys[:, :, :16], pos[:, :16], None, (turn, turn), 8192, 2**63 - 1)
    found = FoundTokens(q[:, :, 0], table[:, :, 0], at, 0.0)
    triton_found.decode(q[:, :, 0], window, [first], found, q_pos[:, 0], D, D**-0.5)
    alone = found._replace(lowered_BH=torch.zeros(1, H).expand(B, H), margin=None)
    triton_found.decode(q[:, :, 0], window, [first], alone, q_pos[:, 0], D, D**-0.5)
assert len({kernel.hash for kernel in kernels}) > 40, len(kernels)
"""


def test_they_compile_for_an_h100() -> None:
    run(COMPILED, "0")
