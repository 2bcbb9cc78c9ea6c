"""The decoding kernels without a GPU: run by Triton's interpreter, and compiled for an H100. Needs triton installed."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

INTERPRETED = """
import torch
from hf_longctx import LMInfinite, StreamingLLM
from hf_longctx.ops.kernels import FUSED, decode
from tests.tiny import left_padded, text, tiny

def everywhere(branches, softcap=None):
    if branches[0].q_BHLD.shape[2] != 1:
        return "several queries"
    ropes = [rope for branch in branches for rope in (branch.q_rope, branch.k_rope) if rope is not None]
    assert all(decode._halves(rope, branches[0].q_BHLD.shape[-1]) for rope in ropes)
    calls.append(1)

ids, mask = left_padded([text(1, n, seed=n)[0] for n in (20, 7)])
settings = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
(kernel,) = FUSED
stock = kernel.unsupported_reason
for family in ("llama", "gpt_neox", "smollm3"):
    for method in (LMInfinite(n_global=4, n_local=12), StreamingLLM(n_sink=4, window=12)):
        model, calls = tiny(family), []
        with method.on(model):
            truth = torch.stack(model.generate(ids, attention_mask=mask, **settings).logits)
            kernel.unsupported_reason = everywhere
            ours = torch.stack(model.generate(ids, attention_mask=mask, **settings).logits)
            kernel.unsupported_reason = stock
        assert calls
        torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-5)
"""

SHARED = """
import torch
from hf_longctx.ops.prefix import PrefixKeys, PrefixQuery, SuffixKeys, fused, merged

torch.manual_seed(0)
def check(B, H, G, D, P, S, window, parts, levels):
    q, (k, v) = torch.randn(B, H, 1, D), torch.randn(2, B, G, S, D).unbind()
    pos = (P * levels + torch.arange(S)).expand(B, S).clone()
    pos[:, -2:], pos[0, :1] = -1, -1  # empty columns, and padding
    at = torch.full((B, 1), P * levels + S - 3)
    prefix = [PrefixKeys(*torch.randn(2, 1, G, P, D).unbind(), torch.arange(P)[None] + i * P) for i in range(levels)]
    given = PrefixQuery(q, at, window, D**-0.5), SuffixKeys(k, v, pos, False, True), prefix
    torch.testing.assert_close(fused(*given, parts), merged(*given, "reference"), atol=2e-6, rtol=2e-6)

check(5, 6, 2, 16, 70, 9, None, 4, 1)  # two keys are left over
check(5, 6, 2, 16, 70, 9, None, 1, 2)
check(3, 4, 4, 24, 33, 9, None, 3, 3)
check(3, 8, 1, 64, 130, 20, 50, None, 2)  # a sliding-window layer
"""

SINK = """
import torch
from hf_longctx.ops.attend import attend
from hf_longctx.ops.kernels import FUSED
from hf_longctx.ops.masks import BeyondWindow, Window
from tests.ops.cases import problem, truth

FUSED[0].unsupported_reason = lambda branches, softcap: None
p, sink = problem("one-token", 4, 2, 16), torch.tensor([1.0, -2.0, 5.0, 9.0])
branches = [p.branch(Window(64)), p.branch(BeyondWindow(64))]
true = truth(branches, 0.1, sink)[0].float()
torch.testing.assert_close(attend(branches, scale=0.1, sink_H=sink), true, atol=2e-6, rtol=2e-6)
"""

ALIKE = """
import torch
from hf_longctx.ops.kernels.triton_decode import Keys, decode
from hf_longctx.ops.kernels.triton_few import add_few_

# rows whose tokens all stand at one place may share their positions
torch.manual_seed(0)
B, H, G, S, D, far = 3, 4, 2, 20, 16, 12
q, (k, v), pos = torch.randn(B, H, 1, D), torch.randn(2, B, G, S, D), torch.arange(S)[None]
scores = torch.einsum("bhd,bhsd->bhs", q[:, :, 0].double(), k.double().repeat_interleave(H // G, 1)) * 0.3
weights = scores.masked_fill(S - 1 - pos[:, None] >= far, float("-inf")).softmax(-1)
true = torch.einsum("bhs,bhsd->bhd", weights, v.double().repeat_interleave(H // G, 1)).float()
out, lse = torch.zeros(B, 1, H, D), torch.full((B, H, 1), float("-inf"))
add_few_(q, k, v, out, lse, pos[:, -1:], pos, 0.3, 0, far)
torch.testing.assert_close(out[:, 0], true, atol=2e-6, rtol=2e-6)
out, lse = decode(q[:, :, 0], [Keys(k, v, pos, None, None, 0, far)], pos[:, -1], 0, 0.3)
torch.testing.assert_close(out, true, atol=2e-6, rtol=2e-6)
"""

CHECKED = """
from dataclasses import replace
import torch
from hf_longctx.ops.kernels import decode, triton_decode

def check(dtype, head_dims, rotary_dim, group, capped):
    return decode._check(torch.device("cpu"), dtype, head_dims, rotary_dim, group, capped)

for given in ((torch.float32, (64, 64), 64, 3, False), (torch.float16, (48, 32), 32, 2, True),
              (torch.float32, (96, 96), 0, 1, False)):
    assert check(*given) is None, given

def wrong(of):
    return lambda q, sets, *rest: kernel(q, [replace(keys, **of(keys)) for keys in sets], *rest)

kernel, same = triton_decode.decode, lambda x: x[:1].expand_as(x)
for what, of in {
    "keys of the first row": lambda keys: {"k_BGSD": same(keys.k_BGSD)},
    "values of the first row": lambda keys: {"v_BGSD": same(keys.v_BGSD)},
    "positions of the first row": lambda keys: {"k_pos_BS": same(keys.k_pos_BS)},
    "the first row's rotation of keys": lambda keys: {"k_turn": tuple(map(same, keys.k_turn))},
    "the first row's rotation of queries": lambda keys: {"q_turn": tuple(map(same, keys.q_turn))},
    "keys of the first head": lambda keys: {"k_BGSD": keys.k_BGSD[:, :1].expand_as(keys.k_BGSD)},
}.items():
    triton_decode.decode = wrong(of)
    assert "its output is off" in str(check(torch.float16, (32, 32), 32, 2, False)), what
"""

COMPILED = """
import triton
from tests.ops.interpreted import compile_for_h100
from hf_longctx.ops.kernels import triton_decode as T
from hf_longctx.ops.kernels import triton_merge as M

def compile(function, sizes, pointers, **options):
    distances = {name: "i64" for name in ("near", "far", "near2", "far2")}
    return compile_for_h100(function, sizes, {**distances, **pointers}, **options)

up = triton.next_power_of_2
for dtype, (tile, warps, stages, _) in (("*bf16", T.HALF), ("*fp32", T.FULL)):
    for dim, half, group in ((64, 32, 3), (96, 48, 4), (128, 64, 4), (256, 128, 8), (64, 8, 1)):
        sizes = dict(D=dim, V=dim, VP=up(dim), R2=half, RP=max(16, up(half)), EP=max(16, up(max(dim - 2 * half, 1))),
                     CAP=0.0, GROUP=group, GP=16, N=tile, Q_ROTATE=True, K_ROTATE=True, SECOND=True,
                     Q_ROTATE2=False, K_ROTATE2=True)
        one_set = {name: dtype for name in ("k", "v", "q_cos", "q_sin", "k_cos", "k_sin")} | {"k_pos": "*i64"}
        pointers = one_set | {f"{name}2": kind for name, kind in one_set.items()}
        pointers |= {"q": dtype, "q_pos": "*i64", "out": "*fp32", "lse": "*fp32"}
        kernel = compile(T._part, sizes, pointers, num_warps=warps, num_stages=stages)
        assert kernel.metadata.shared < 227 * 1024, (dtype, dim, kernel.metadata.shared)
pointers = {"part": "*fp32", "part_lse": "*fp32", "sink": "*bf16", "out": "*bf16", "lse": "*fp32"}
for sink in (False, True):
    compile(T._merge, dict(D=128, DP=128, PP=512, STEP=8, SINK=sink), pointers)
# after a shared prefix: keys are rotated already
sizes |= dict(D=64, V=64, VP=64, R2=32, RP=32, EP=16, GROUP=3, N=T.HALF[0], Q_ROTATE=False, K_ROTATE=False,
              Q_ROTATE2=False, K_ROTATE2=False)
one_set = {name: "*bf16" for name in ("k", "v", "q_cos", "q_sin", "k_cos", "k_sin")} | {"k_pos": "*i64"}
pointers = one_set | {f"{name}2": kind for name, kind in one_set.items()}
pointers |= {"q": "*bf16", "q_pos": "*i64", "out": "*fp32", "lse": "*fp32"}
for second in (True, False):
    compile(T._part, sizes | {"SECOND": second}, pointers, num_warps=T.HALF[1], num_stages=T.HALF[2])
for part, out in (("*bf16", "*bf16"), ("*bf16", "*fp32"), ("*fp32", "*fp32")):
    pointers = {"own": "*fp32", "own_lse": "*fp32", "part": part, "part_lse": "*fp32", "out": out, "out_lse": "*fp32"}
    compile(M._merge, dict(D=80, DP=128, GROUP=4, ROWS=M.ROWS), pointers)
"""


CODES = {
    "interpreted": (INTERPRETED, "1"),
    "shared-interpreted": (SHARED, "1"),
    "sink-interpreted": (SINK, "1"),
    "alike-interpreted": (ALIKE, "1"),
    "checked-interpreted": (CHECKED, "1"),
    "compiled": (COMPILED, "0"),
}


@pytest.mark.parametrize("name", CODES)
def test_kernel(name: str) -> None:
    run(*CODES[name])
