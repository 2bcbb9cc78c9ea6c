"""Prefill attention of one layer with sinks or a cap, beside the fastest kernel on the same shapes without them."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from hf_longctx import LMInfinite
from hf_longctx.attention.state import STATE, DecoderState
from hf_longctx.evaluation.rows import row
from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.checked import KERNEL_TOLERANCE, relative_error
from hf_longctx.ops.kernels import KERNELS
from hf_longctx.ops.kernels.base import Call
from hf_longctx.ops.masks import BeyondWindow, Window
from hf_longctx.ops.positions import Positions

from .hydragen import Attempt
from .timing import by_clock, milliseconds
from .wide_models import TINY, Geometry, Sizes, build

SLOW = 200.0  # milliseconds: one sample is enough
CHECKED = 32  # last queries, whose outputs are compared


def rows(geometry: Geometry, sizes: Sizes, device: str, attempt: Attempt) -> Iterator[dict[str, Any]]:
    """A chunk after the window is full, and the whole text at once."""
    chunk = sizes.read // 8
    asked = _kernel(geometry)
    for shape, L, S in (
        (f"a chunk of {chunk:,} tokens and the window before it", chunk, chunk + sizes.n_local - 1),
        (f"{sizes.read:,} tokens at once", sizes.read, sizes.read),
    ):
        problem = Problem(geometry, sizes, device, L, S)
        for kernel in dict.fromkeys((asked, "auto")):
            what = f"{geometry.name}: prefill attention of a layer, {shape}, kernel {kernel}"
            what += " (the model's own choice)" if kernel == asked else ""
            what += ": time over the fastest kernel without cap and sinks"
            yield attempt(what, "", partial(problem.row, what, kernel))


class Problem:
    """Random queries, keys and values of one layer, and the branches that LMInfinite makes of them."""

    @torch.no_grad()
    def __init__(self, geometry: Geometry, sizes: Sizes, device: str, L: int, S: int) -> None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        (H, G), (D, V) = geometry.heads, geometry.dims
        if sizes is TINY:
            H, G, D, V = 4, 2, 16, 12 if V < D else 16
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        q, k, v = 3 * random(1, H, L, D), random(1, G, S, D), random(1, G, S, V)
        first = random(1, G, sizes.n_global, D), random(1, G, sizes.n_global, V)
        pos = torch.arange(sizes.read, device=device)[None]
        q_pos, k_pos, first_pos = pos[:, -L:], pos[:, -S:], pos[:, : sizes.n_global]
        whole = Positions(q_pos, k_pos, same_rows=L == S, consecutive=True, padded=False)
        self.branches = [
            Branch(q, k, v, whole, Window(sizes.n_local)),
            Branch(q, *first, Positions(q_pos, first_pos, padded=False), BeyondWindow(sizes.n_local)),
        ]
        self.n_local, self.scale = sizes.n_local, D**-0.5
        self.more: dict[str, Any] = {} if geometry.softcap is None else {"softcap": geometry.softcap}
        if geometry.sinks:
            self.more["sink_H"] = random(H).float() + 8

    @torch.no_grad()
    def row(self, what: str, kernel: str) -> dict[str, Any]:
        """`attend` with a kernel by name, as a model under the method calls it, over the fastest of `kernels`."""

        def ours() -> Tensor:
            return attend(self.branches, scale=self.scale, kernel=kernel, strict=False, **self.more)

        _check("attend", ours(), _literal(self.branches, self.n_local, self.scale, **self.more))
        mine = _milliseconds(ours)
        name = min(self.kernels, key=lambda name: self.kernels[name])
        beside = {"attend, ms": mine, f"fastest kernel ({name}), ms": self.kernels[name]}
        bar = "<= 1.3" if self.branches[0].q_BHLD.is_cuda else None
        return row(what, mine / self.kernels[name], "", bar=bar, beside=beside, detail={"kernels, ms": self.kernels})

    @cached_property
    def kernels(self) -> dict[str, float]:
        """Milliseconds of every kernel that can do the window, without cap and sinks; values as wide as keys."""
        q, k, v = self.branches[0].q_BHLD, self.branches[0].k_BGSD, self.branches[0].v_BGSD
        call, found = Call(self.branches[0].positions, self.branches[0].mask, self.scale), {}
        wide = torch.nn.functional.pad(v, (0, k.shape[-1] - v.shape[-1]))
        right = _literal(self.branches[:1], self.n_local, self.scale)
        for name, kernel in KERNELS.items():
            if kernel.unsupported_reason(call, q, k) is not None:
                continue
            try:
                out = kernel.forward(call, q, k, wide)[0]
                _check(name, out[..., : v.shape[-1]], right)
                del out
                found[name] = _milliseconds(partial(kernel.forward, call, q, k, wide))
            except Exception as error:  # out of memory, a compiler's refusal: the others are what it is about
                print(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}", flush=True)
                if q.is_cuda:
                    torch.cuda.empty_cache()
        return found


def _kernel(geometry: Geometry) -> str:
    """The kernel that a model asks for as transformers loads it, without attn_implementation."""
    model = build(geometry, TINY, "cpu", torch.float32)
    with LMInfinite(n_local=TINY.n_local).on(model):
        state: DecoderState = next(vars(module)[STATE] for module in model.modules() if STATE in vars(module))
        return state.kernel


def _literal(
    branches: list[Branch], n_local: int, scale: float, softcap: float | None = None, sink_H: Tensor | None = None
) -> Tensor:
    """The last queries' outputs by definition: scores of all pairs, the window first, the keys beyond it second."""
    scores, values = [], []
    for i, branch in enumerate(branches):
        q = branch.q_BHLD[:, :, -CHECKED:].float()
        groups = q.shape[1] // branch.k_BGSD.shape[1]
        k, v = (x.float().repeat_interleave(groups, 1) for x in (branch.k_BGSD, branch.v_BGSD))
        score = q @ k.mT * scale
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        far = branch.positions.q_pos_BL[:, -CHECKED:, None] - branch.positions.k_pos_BS[:, None]
        seen = (far >= 0) & (far < n_local) if i == 0 else far >= n_local
        scores.append(score.masked_fill(~seen[:, None], float("-inf")))
        values.append(v)
    everything = torch.cat(scores, -1)
    if sink_H is not None:
        sink = sink_H.float()[None, :, None, None].expand(*everything.shape[:3], 1)
        everything = torch.cat([everything, sink], -1)
    weights = everything.softmax(-1)[..., : sum(v.shape[2] for v in values)]
    return (weights @ torch.cat(values, 2)).transpose(1, 2)


def _check(name: str, out_BLHD: Tensor, right_BLHD: Tensor) -> None:
    off = relative_error(out_BLHD[:, -CHECKED:], right_BLHD)
    if not off <= KERNEL_TOLERANCE[out_BLHD.dtype]:
        raise RuntimeError(f"{name} is off by {off:.1e} (relative)")


def _milliseconds(work: Callable[[], Any]) -> float:
    """Median time: by device events on a GPU, by the clock elsewhere; a slow one once, after its first run."""
    if not torch.cuda.is_available():
        return by_clock(work)
    once = milliseconds(work, runs=1, warm_up=1)
    return once if once > SLOW else milliseconds(work)
