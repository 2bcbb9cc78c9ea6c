"""Attention of one layer of 9/3 heads on two cards: exchange of heads beside ring and all-gather."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_longctx.evaluation.rows import row
from hf_longctx.parallel import Layout, Ranks, attention
from hf_longctx.parallel.model.choosing import Geometry, choose

from ..reading import K
from .launching import Launcher
from .train import NOT_MEASURED, TINY_TOKENS
from .world import World, relative

HEADS, DIM = (9, 3), 64
BARS = {32 * K: 1.35, 128 * K: 1.15}
KINDS = ("ring", "gather", "ulysses")


def drawn(tokens: int, heads: tuple[int, int], world: World, seed: int = 0) -> list[Tensor]:
    """q, k, v and the output's gradient of all tokens, as layers have them; the same on every process."""
    generator = torch.Generator(world.device).manual_seed(seed)
    dim = 8 if world.tiny else DIM
    H, G = heads
    every = [
        torch.randn(1, tokens, n, dim, generator=generator, device=world.device).to(world.dtype) for n in (H, G, G, H)
    ]
    return [*(x.transpose(1, 2) for x in every[:3]), every[3]]


class Shared:
    """Attention of this process' rows of a layout, forward and backward."""

    def __init__(self, layout: Layout, kind: str, tensors: list[Tensor], world: World) -> None:
        self.ranks = Ranks(layout, kind, device=world.device)
        self.places = layout.places[self.ranks.rank].to(world.device)
        self.leaves = [x[:, :, self.places].detach().requires_grad_() for x in tensors[:3]]
        self.grad = tensors[3][:, self.places].contiguous()
        self.out = self.forward()

    def forward(self) -> Tensor:
        q, k, v = self.leaves
        return attention(q, k, v, self.ranks, scale=q.shape[-1] ** -0.5)[0]

    def backward(self) -> tuple[Tensor, ...]:
        """Of the output that the constructor made."""
        return torch.autograd.grad(self.out, self.leaves, self.grad, retain_graph=True)

    def times(self, world: World, runs: int) -> tuple[float, float]:
        """Milliseconds of forward and of backward."""
        return world.milliseconds(self.forward, runs), world.milliseconds(self.backward, runs)

    def off(self, true: Shared) -> float:
        """How far output and gradients are off from those of all rows on one process; the worst."""
        pairs = [(self.out, true.out[:, self.places])]
        pairs += [(a, b[:, :, self.places]) for a, b in zip(self.backward(), true.backward(), strict=True)]
        return max(relative(a, b) for a, b in pairs if b.numel())


def work(world: World, tokens: list[int]) -> Iterator[dict[str, Any]]:
    """Milliseconds of every kind, after a check against one card."""
    for length in tokens:
        tensors = drawn(length, HEADS, world)
        layout, runs = Layout.of([length], world.size), 2 if world.tiny else 5
        one = Shared(Layout.of([length], 1), "ring", tensors, world)
        took, off = {"one card": one.times(world, runs)}, {}
        for kind in KINDS:
            shared = Shared(layout, kind, tensors, world)
            off[kind] = world.worst(shared.off(one))[0]
            took[kind] = shared.times(world, runs)
        auto, _ = choose(layout, Geometry(*HEADS, DIM, 0, 30))
        yield {"tokens": length, "ms": took, "off": off, "auto": auto}


def rows(launcher: Launcher, geometry: str, tokens: list[int], lines: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each length: Ulysses over ring."""
    tokens = TINY_TOKENS[:1] if launcher.tiny else tokens or list(BARS)
    for sample in launcher.samples("ulysses", 2, tokens=tokens):
        if "tokens" not in sample:
            yield row("Ulysses on two cards over ring", None, "", why=sample.get("failed", NOT_MEASURED))
            continue
        length, sums = sample["tokens"], {kind: sum(pair) for kind, pair in sample["ms"].items()}
        shown = f"{length // K}k" if length >= K else f"{length} tokens"
        bar = f"<= {BARS[length]}" if length in BARS else None
        beside: dict[str, Any] = {f"{kind}, ms": ms for kind, ms in sums.items()}
        beside |= {f"{kind}, relative error": off for kind, off in sample["off"].items()}
        what = f"9/3 heads of 64, one document of {shown}, two cards: time of Ulysses over ring, forward and backward"
        yield row(what, sums["ulysses"] / sums["ring"], "", bar=bar, beside=beside, detail=sample)
