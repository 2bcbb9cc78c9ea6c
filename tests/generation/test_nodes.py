"""No step is recorded with anything but kernels, and around its graph the host waits for nothing."""

from __future__ import annotations

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

METHODS = """
from hf_longctx import CodeLookup, LMInfinite, StreamingLLM
import torch

window = {"n_global": 2, "n_local": 16}
lookup = {**window, "top_k": 3, "shortlist": 6}
methods = {
    "window": LMInfinite(**window),
    "sinks": StreamingLLM(n_sink=2, window=16),
    "top_k": LMInfinite(**window, top_k=3, top_k_from_layer=1),
    "codes": CodeLookup(**lookup),
    "keys": CodeLookup(**window, top_k=3, by="keys"),
    "each head": CodeLookup(**lookup, per="head"),
    "no gate": CodeLookup(**lookup, gate=None),
    "count": CodeLookup(**lookup, gate="count"),
    "heads": CodeLookup(**lookup, gate="heads", heads=[[1, 0]]),
}
"""

KERNELS = (
    METHODS
    + """
from tests.generation.nodes import nodes
more = [("codes", 2, torch.float32), ("codes", 1, torch.float16), ("heads", 2, torch.float32)]
for name, batch, dtype in [(name, 1, torch.float32) for name in methods] + more:
    seen = nodes(methods[name], batch, dtype)
    assert seen.names["mm"] > 10, seen.names
    assert not seen.others, (name, batch, dtype, seen.others)
stock = nodes(None)
assert not stock.others, stock.others
"""
)

TOLD = """
import torch
from tests.generation.nodes import Nodes
x, y = torch.randn(4, 6), torch.randn(6, 4)
with Nodes() as seen:
    x.clone(), x.copy_(y.t()), x.copy_(x), x.to(torch.bfloat16), y.t().contiguous(), x[:, :3].clone(), x[:2].clone()
assert sorted(name for _, name in seen.others.elements()) == ["clone", "clone", "copy_"], seen.others
with Nodes() as seen:
    x.nonzero(), bool(x.any()), torch.tensor([1])
assert sorted(name for _, name in seen.others.elements()) == ["_local_scalar_dense", "nonzero"], seen.others
assert sorted(name for _, name in seen.from_host.elements()) == ["_local_scalar_dense", "lift_fresh"], seen.from_host
"""

AROUND = (
    METHODS
    + """
from tests.generation.nodes import around_replays
for name, method in methods.items():
    if name == "top_k":
        continue
    seen = around_replays(method, 8)
    assert not seen.from_host, (name, seen.from_host)
    # a token and its position are handed over, and the logits taken away
    names = {name: n for name, n in seen.names.items() if not name.startswith(("empty", "new_empty"))}
    assert names == {"copy_": 16, "clone": 8}, (name, names)
"""
)


def test_what_is_no_kernel_is_told() -> None:
    run(TOLD, "1")


def test_a_step_is_recorded_as_kernels_alone() -> None:
    run(KERNELS, "1")


def test_the_host_waits_for_nothing_around_a_graph() -> None:
    run(AROUND, "1")
