"""Attention among ranks as an operator of torch, and what it refuses, by name."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hf_longctx.ops.masks import Causal, Chunk, Window
from hf_longctx.parallel import Layout, Ranks, attention, gradients, op, registered

from .cases import MASKS, SCALE, Case, errors, inputs, on_a_rank, ranks_of
from .pool import Pool

ONE = Layout.of([7, 1, 12], 1)


def randoms(rows: int = 20, heads: tuple[int, int] = (4, 2), dim: int = 8, v_dim: int = 8) -> list[torch.Tensor]:
    H, G = heads
    shapes = (1, H, rows, dim), (1, G, rows, dim), (1, G, rows, v_dim)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def checked(case: Case) -> dict[str, str]:
    """torch's own checks of the operator, on every rank."""
    ranks = ranks_of(case, dist.get_world_size())
    places = ranks.layout.places[ranks.rank]
    q, k, v, _ = inputs(case)
    qkv = [x[:, :, places].requires_grad_() for x in (q, k, v)]
    number = ranks.exchange(MASKS[case.mask]).number
    return torch.library.opcheck(torch.ops.hf_longctx.ranks_flash_attn.default, (*qkv, SCALE, number))


@pytest.mark.parametrize("mask", ["causal", "window"])
@pytest.mark.parametrize("kind", ["ring", "gather", "ulysses"])
def test_torch_finds_nothing_wrong_with_the_operator(two: Pool, kind: str, mask: str) -> None:
    for results in two.run(checked, Case("packed odd", kind, (9, 3), mask)):
        assert len(results) >= 4
        assert set(results.values()) == {"SUCCESS"}


def test_gradients_are_those_of_differences() -> None:
    ranks = Ranks(ONE)
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, ranks, scale=0.3)[0], randoms())


def test_values_may_have_another_head_dim() -> None:
    for v_dim in (4, 12):
        q, k, v = randoms(v_dim=v_dim)
        out, _ = attention(q, k, v, Ranks(ONE), scale=0.3)
        code = ONE.codes_T
        seen = (code[:, None] // 2**32 == code // 2**32) & (code <= code[:, None])
        scores = (q @ k.repeat_interleave(2, 1).transpose(2, 3) * 0.3).masked_fill(~seen, float("-inf"))
        right = (scores.softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2)
        torch.testing.assert_close(out, right)
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        torch.testing.assert_close(grads, torch.autograd.grad(right.sum(), (q, k, v)))


def test_a_compiled_graph_holds_it_whole() -> None:
    ranks = Ranks(ONE)
    ranks.prepare(Causal())

    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q * 2, k, v, ranks, scale=0.3)[0] + 1

    qkv = randoms()
    out, compiled = layer(*qkv), torch.compile(layer, backend="aot_eager", fullgraph=True)(*qkv)
    torch.testing.assert_close(compiled, out)
    grads = torch.autograd.grad(out.square().sum(), qkv)
    torch.testing.assert_close(torch.autograd.grad(compiled.square().sum(), qkv), grads)


def test_trl_keeps_it_from_recomputation_by_its_name() -> None:
    assert "flash_attn" in str(torch.ops.hf_longctx.ranks_flash_attn.default)


def test_the_log_sum_exp_has_no_gradient() -> None:
    out, lse = attention(*randoms(), Ranks(ONE), scale=0.3)
    assert out.requires_grad
    assert not lse.requires_grad


def operators() -> list[Any]:
    return [torch.ops.hf_longctx.ranks_flash_attn.default, torch.ops.hf_longctx.ranks_flash_attn_backward.default]


def test_a_second_import_is_safe(two: Pool) -> None:
    case = Case("packed odd", "ring", (9, 3), "causal")
    assert max(errors(case, two.run(reloaded, case)).values()) < 1e-5


def reloaded(case: Case) -> dict[str, Any]:
    before = operators()
    for module in (op, registered, gradients):
        importlib.reload(module)
    # torch would keep pointers to them when they are gone
    assert all(a is b for a, b in zip(before, operators(), strict=True))
    return on_a_rank(case)


AGAIN = """
import sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))
def run():
    from hf_longctx.parallel.layout import Layout
    from hf_longctx.parallel.op import attention
    from hf_longctx.parallel.ranks import Ranks
    qkv = [torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(3)]
    with Mode():
        out, _ = attention(*qkv, Ranks(Layout.of([5], 1)), scale=0.3)
        return out, torch.autograd.grad(out.sum(), qkv)[0]
first = run()
operators = [torch.ops.hf_longctx.ranks_flash_attn.default, torch.ops.hf_longctx.ranks_flash_attn_backward.default]
for name in [name for name in sys.modules if name.split(".")[0] == "hf_longctx"]:
    del sys.modules[name]
for a, b in zip(first, run()):
    assert torch.equal(a, b)
assert torch.ops.hf_longctx.ranks_flash_attn.default is operators[0]
assert torch.ops.hf_longctx.ranks_flash_attn_backward.default is operators[1]
"""


def test_the_package_imported_twice_in_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_graph_keeps_its_exchange_alive() -> None:
    q, k, v = randoms()
    ranks = Ranks(ONE)
    out, _ = attention(q, k, v, ranks, scale=0.3)
    number = ranks.exchange(Causal()).number
    del ranks
    gc.collect()
    out.sum().backward()
    assert q.grad is not None
    del out
    gc.collect()
    with pytest.raises(RuntimeError, match="the Ranks of this attention are gone"):
        torch.ops.hf_longctx.ranks_flash_attn(q, k, v, 0.3, number)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[:, :, 1:], k, v), r"expected \(1, heads, 20, head dim\), the rows of rank 0"),
        (lambda q, k, v: (q, k[:, :, 1:], v), r"expected \(1, heads, 20, head dim\), the rows of rank 0"),
        (lambda q, k, v: (q.expand(2, -1, -1, -1), k, v), r"expected \(1, heads, 20, head dim\)"),
        (lambda q, k, v: (q[:, :3], k, v), "a multiple of them as query heads"),
        (lambda q, k, v: (q, k, v[:, :1]), "as many value heads as key heads"),
        (lambda q, k, v: (q, k[..., :4], v), "queries and keys have head dims 8 and 4; expected the same"),
        (lambda q, k, v: (q, k.float(), v), "are torch.float64, torch.float32, torch.float64: expected one dtype"),
        (lambda q, k, v: (q.to("meta"), k, v), "are on meta, cpu, cpu, the Ranks on cpu: expected one device"),
    ],
)
def test_tensors_that_are_not_the_layouts(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(*change(*randoms()), Ranks(ONE), scale=0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "star"}, "kind='star': expected one of ring, gather, ulysses, hybrid"),
        ({"kind": "hybrid"}, "kind='hybrid' with inner=None: expected an inner group for 'hybrid'"),
        ({"inner": object()}, "kind='ring' with inner=<object"),
        ({"outside": "ulysses"}, "outside='ulysses': expected 'ring' or 'gather'"),
    ],
)
def test_settings_of_ranks_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ranks(ONE, **settings)


def test_masks_that_ranks_do_not_share() -> None:
    with pytest.raises(ValueError, match=r"inside=Chunk\(.*\): ranks share attention under Causal, Window or Full"):
        attention(*randoms(), Ranks(ONE), scale=0.3, inside=Chunk(5))
    assert Ranks(ONE).exchange(Window(3)).inside == Window(3)


def refused() -> list[str]:
    """What a rank of two says."""
    said = []
    layout = Layout.of([8, 5], 2)
    for run in (
        lambda: attention(*randoms(layout.sizes[dist.get_rank()], (1, 1)), Ranks(layout, "ulysses"), scale=0.3),
        lambda: Ranks(Layout.of([8, 5], 4)),
    ):
        try:
            run()
        except ValueError as error:
            said.append(str(error))
    return said


def test_ranks_refuse_what_they_cannot_share(two: Pool) -> None:
    for heads, size in two.run(refused):
        assert heads.startswith("Ulysses shares 1 query heads among 2 ranks: expected at least one for each. Use kind=")
        assert size == "the layout has 4 ranks, the groups 2. Make it for that many."
