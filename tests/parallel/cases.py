"""Packs for several ranks, what ranks compute of them, and the truth: every pair of tokens, in float64, by autograd."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hf_longctx.ops.masks import DOCUMENT, Causal, Full, Window
from hf_longctx.parallel import Layout, Ranks, attention

PACKS: dict[str, tuple[list[int], str | int]] = {  # lengths, and which of them are cut
    "dense odd": ([141], "all"),
    "packed odd": ([37, 1, 13, 61, 2, 23, 9], "all"),
    "short whole": ([37, 1, 13, 61, 2, 23, 9], 30),
    "rank without rows": ([1], "all"),
    "fewer tokens than ranks": ([3], "all"),
    "balance": ([37, 0, 13, 61, 2, 23, 9], "balance"),
    "all whole": ([20, 21, 19, 22], 1000),
    "no documents": ([], "all"),
}
HEADS = [(9, 3), (32, 8), (8, 8)]
MASKS = {"causal": Causal(), "window": Window(11), "wide-window": Window(70), "full": Full()}
DIM = 8
SCALE = DIM**-0.5
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


def pack(name: str) -> tuple[list[int], str | int]:
    """Lengths, and which of them are cut, of one of `PACKS` or, where the name is a number, at random."""
    if name in PACKS:
        return PACKS[name]
    rng = random.Random(int(name))
    lengths = [rng.randrange(60) for _ in range(rng.randrange(1, 9))]
    return lengths, rng.choice(["balance", "all", 2, 20])


@dataclass(frozen=True)
class Case:
    pack: str
    kind: str
    heads: tuple[int, int]
    mask: str
    dtype: torch.dtype = torch.float32
    inner: int = 2  # ranks of a host, for hybrid
    outside: str = "ring"
    device: str = "cpu"

    def __str__(self) -> str:
        kind = f"{self.kind}-{self.inner}-{self.outside}" if self.kind == "hybrid" else self.kind
        width = str(self.dtype).removeprefix("torch.")
        return f"{self.pack}-{kind}-{self.heads[0]}/{self.heads[1]}-{self.mask}-{width}".replace(" ", "_")

    def layout(self, ranks: int) -> Layout:
        lengths, cut = pack(self.pack)
        return Layout.of(lengths, ranks, cut)


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the gradient that arrives at the output, of the whole pack."""
    tokens, (H, G) = sum(pack(case.pack)[0]), case.heads
    generator = torch.Generator().manual_seed(tokens + H)
    shapes = (1, H, tokens, DIM), (1, G, tokens, DIM), (1, G, tokens, DIM), (1, tokens, H, DIM)
    q, k, v, grad = (torch.randn(shape, generator=generator).to(case.dtype) for shape in shapes)
    return q, k, v, grad


@functools.cache
def truth(name: str, heads: tuple[int, int], mask: str) -> dict[str, Tensor]:
    """Output, log-sum-exp and gradients of the whole pack, pair by pair."""
    q, k, v, grad = (x.double().requires_grad_() for x in inputs(Case(name, "", heads, mask)))
    code = torch.tensor([n * DOCUMENT + i for n, length in enumerate(pack(name)[0]) for i in range(length)])
    seen = code[:, None] // DOCUMENT == code // DOCUMENT
    if mask != "full":
        seen &= code <= code[:, None]
    if "window" in mask:
        seen &= code > code[:, None] - {"window": 11, "wide-window": 70}[mask]
    group = heads[0] // heads[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(2, 3) * SCALE
    scores = scores.masked_fill(~seen, float("-inf"))
    out = (scores.softmax(-1) @ v.repeat_interleave(group, 1)).transpose(1, 2)
    out.backward(grad)
    found = {"out": out, "lse": scores.logsumexp(-1), "dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {name: x.detach() for name, x in found.items() if x is not None}


def ranks_of(case: Case, world: int) -> Ranks:
    group, inner = None, None
    if case.kind == "hybrid":
        group, inner = _mesh(world, case.inner)
    return Ranks(case.layout(world), case.kind, group, inner, case.outside, case.device)


@functools.cache  # groups are made once, by all ranks in one order
def _mesh(world: int, inner: int) -> tuple[Any, Any]:
    outers = [list(range(first, world, inner)) for first in range(inner)]
    inners = [list(range(first, first + inner)) for first in range(0, world, inner)]
    return dist.new_subgroups_by_enumeration(outers)[0], dist.new_subgroups_by_enumeration(inners)[0]


def on_a_rank(case: Case) -> dict[str, Any]:
    """What this rank finds of its rows, as arrays."""
    ranks = ranks_of(case, dist.get_world_size())
    places = ranks.layout.places[ranks.rank]
    q, k, v, grad = inputs(case)
    q, k, v = (x[:, :, places].to(case.device).requires_grad_() for x in (q, k, v))
    out, lse = attention(q, k, v, ranks, scale=SCALE, inside=MASKS[case.mask])
    out.backward(grad[:, places].to(case.device))
    found = {"out": out, "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {name: sendable(x.detach().cpu()) for name, x in found.items() if x is not None}


def sendable(x: Tensor) -> Any:
    """As an array, which goes through a pipe by value; bfloat16 as its bits."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def received(x: Any) -> Tensor:
    found = torch.from_numpy(x)
    return found.view(torch.bfloat16) if found.dtype == torch.int16 else found


def whole(case: Case, answers: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The answers of all ranks in the order of the pack."""
    inverse_T = case.layout(len(answers)).inverse_T
    found = {}
    for name in answers[0]:
        axis = 1 if name == "out" else 2
        found[name] = torch.cat([received(answer[name]) for answer in answers], axis)
        found[name] = found[name].index_select(axis, inverse_T)
    return found


def errors(case: Case, answers: list[dict[str, Any]]) -> dict[str, float]:
    """How far off each tensor is, relative to its norm."""
    right = truth(case.pack, case.heads, case.mask)
    found = whole(case, answers)
    assert found.keys() == right.keys()
    off = {}
    for name, x in found.items():
        assert x.shape == right[name].shape
        assert x.dtype == (torch.promote_types(case.dtype, torch.float32) if name == "lse" else case.dtype)
        # a document of one token has no gradient of queries and keys, but for rounding
        off[name] = float((x.double() - right[name]).norm() / right[name].norm().clamp(min=1.0))
    return off


@contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """The bytes that each exchange of this rank hands to torch, by torch's function."""
    from unittest.mock import patch

    found: dict[str, list[int]] = {}

    def watch(name: str, size: Any) -> Any:
        function = getattr(dist, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            found.setdefault(name, []).append(size(*args))
            return function(*args, **kwargs)

        return patch.object(dist, name, watched)

    def own(x: Tensor) -> int:
        return x.numel() * x.element_size()

    with (
        watch("batch_isend_irecv", lambda ops: sum(own(op.tensor) for op in ops if op.op is dist.isend)),
        watch(ALL_GATHER, lambda out, x, *_: own(x)),
        watch("all_reduce", own),
        watch("all_to_all_single", lambda out, x, *_: own(x)),
    ):
        yield found
